"""What ships with the package passes its own checks on the way to the Hub and back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import neural_expm
from neural_expm import checkpoints, hub
from neural_expm.checkpoints import fingerprint, load_record, serialize
from neural_expm.errors import CheckpointError, UnknownModelError
from neural_expm.hub.folder import write_folder
from neural_expm.hub.proof import prove
from neural_expm.manifest import Checkpoint, shipped
from neural_expm.training.publish import publish, pull

RECORDS = list(shipped().values())
# the smallest of each kind
KINDS = {(r.family, r.function, r.bound_kind): r for r in sorted(RECORDS, key=lambda r: -r.size)}.values()
CERTIFIED = [record for record in RECORDS if record.bound_kind == "certified"]


@pytest.fixture(autouse=True)
def _real_families(monkeypatch):
    """The families as they are, not the tiny one of the other tests."""
    from neural_expm import networks

    monkeypatch.setitem(networks.FAMILIES, "equivariant/expm", "exponential:EquivariantExponential")


def inside(record: Checkpoint) -> torch.Tensor:
    """A few matrices of the domain."""
    n = max(2, record.domain.n[0])
    dtype = torch.float64 if record.dtype == "float64" else torch.float32
    A = torch.randn(3, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A = A @ A.mT + n * torch.eye(n, dtype=torch.float64)
    return (
        0.9 * min(record.domain.radius, 1.0) * A / torch.linalg.matrix_norm(A, torch.inf)[..., None, None]
    ).to(dtype)


def forged(network: torch.nn.Module, record: Checkpoint, folder) -> Checkpoint:
    """A record of other weights that claims what the true one claims."""
    content = serialize(network, name=record.name, function=record.function, family=record.family)
    return write_folder(replace(record, **fingerprint(content)), content, folder)


@pytest.mark.parametrize("record", KINDS, ids=lambda record: record.name)
def test_to_the_hub_and_back(server, record, capsys):
    publish([record.name, "--repo", f"me/{record.name}"])
    entry = json.loads((out := capsys.readouterr().out)[out.index("{") :])
    network = hub.load(f"me/{record.name}@{entry['revision']}")
    assert type(network) is type(load_record(record))
    A = inside(record)
    assert torch.equal(network(A), load_record(record)(A))
    assert replace(network.checkpoint, root=record.root, file=record.file, repo="", revision="") == record


@pytest.mark.parametrize("record", CERTIFIED, ids=lambda record: record.name)
def test_every_certified_bound_that_ships_is_proven(record):
    assert prove(record) is record


# sign and sqrtm by compositions are certified for each matrix as it runs: their records only state a limit
OFFLINE = [
    r for r in CERTIFIED if (r.family, r.function) not in {("equivariant", "sign"), ("equivariant", "sqrtm")}
]


@pytest.mark.parametrize("record", OFFLINE, ids=lambda record: record.name)
def test_bound_that_claims_more_than_the_weights_prove_is_refused(record):
    with pytest.raises(CheckpointError, match="do not prove it"):
        prove(replace(record, bound=0.9 * record.bound))


@pytest.mark.parametrize(
    "record", [r for r in CERTIFIED if r.family != "relu"], ids=lambda record: record.name
)
def test_other_weights_under_the_same_claim_are_refused(record, tmp_path):
    network = checkpoints.build(*checkpoints.parse((record.root / record.file).read_bytes()))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    with pytest.raises(CheckpointError, match="do not prove it"):
        prove(forged(network, record, tmp_path))
    with pytest.raises(CheckpointError, match="do not prove it"):
        hub.load(tmp_path)


@pytest.mark.parametrize(
    "record", [r for r in CERTIFIED if r.function == "expm"], ids=lambda record: record.name
)
def test_domain_beyond_the_proof_is_refused(record):
    with pytest.raises(CheckpointError, match="the proof needs"):
        prove(replace(record, domain=replace(record.domain, radius=1.1 * record.domain.radius)))
    other = {"2": "inf", "inf": "2"}[record.domain.norm]
    with pytest.raises(CheckpointError, match="the proof needs"):
        prove(replace(record, domain=replace(record.domain, norm=other)))


def test_from_pretrained_knows_the_shipped_names():
    from neural_expm.networks.sign_and_root import EquivariantSign

    record = shipped()["sign-equivariant"]
    A = inside(record)
    assert torch.equal(EquivariantSign.from_pretrained("sign-equivariant")(A), load_record(record)(A))


def test_training_a_copy_leaves_the_original_alone(tmp_path):
    from neural_expm.networks.sign_and_root import EquivariantSign

    copy = EquivariantSign.from_pretrained("sign-equivariant")
    with torch.no_grad():
        copy.general.zero_()
    assert load_record(shipped()["sign-equivariant"]).general.abs().max() > 0


def test_pulled_checkpoint_answers_without_a_request(server, tmp_path):
    publish(["sqrtm-equivariant", "--repo", "me/sqrtm"])
    pull(["me/sqrtm", "--to", str(tmp_path)])
    server.log.clear()
    hub.load(tmp_path / "sqrtm-equivariant")
    assert server.log == []


@pytest.fixture
def sign_id(server, capsys) -> str:
    """The pinned Hub id of a published sign network."""
    publish(["sign-equivariant", "--repo", "me/sign"])
    out = capsys.readouterr().out
    entry = json.loads(out[out.index("{") :])
    server.log.clear()
    return f"me/sign@{entry['revision']}"


def test_public_functions_take_names_folders_and_hub_ids(server, sign_id, tmp_path):
    A = inside(shipped()["sign-equivariant"])
    expected = neural_expm.sign(A)
    publish(["sign-equivariant", "--dry-run", "--folder", str(tmp_path / "mine")])
    assert server.log == []
    for model in ("sign-equivariant", str(tmp_path / "mine"), tmp_path / "mine"):
        assert torch.equal(neural_expm.sign(A, model=model), expected)
    assert server.log == []
    for model in ("me/sign", sign_id):
        value, report = neural_expm.sign(A, model=model, return_report=True)
        assert torch.equal(value, expected)
        assert (report.checkpoint, report.bound_kind) == (model, "certified")
    assert server.log


def test_a_call_in_a_loop_asks_once(server, sign_id):
    A = inside(shipped()["sign-equivariant"])
    neural_expm.sign(A, model="me/sign")
    before = len(server.log)
    for _ in range(3):
        neural_expm.sign(A, model="me/sign")
    assert len(server.log) == before


def test_a_folder_that_was_written_again_is_read_again(tmp_path):
    from neural_expm.networks.sign_and_root import EquivariantSign

    A = 0.01 * inside(shipped()["sign-equivariant"])
    network = EquivariantSign.from_pretrained("sign-equivariant")
    network.save_pretrained(tmp_path)
    _, report = neural_expm.sign(A, model=tmp_path, return_report=True)
    assert bool(report.inside.all())
    record = shipped()["sqrtm-equivariant"]
    write_folder(record, (record.root / record.file).read_bytes(), tmp_path)
    with pytest.raises(UnknownModelError, match="computes sqrtm"):
        neural_expm.sign(A, model=tmp_path)


def test_nothing_else_reaches_the_network(server):
    A = torch.eye(2)
    neural_expm.expm(A)
    neural_expm.sqrtm(A, model="sqrtm-equivariant")
    neural_expm.load("expm-equivariant")
    with pytest.raises(UnknownModelError, match="no checkpoint 'expm-unheard-of'"):
        neural_expm.expm(A, model="expm-unheard-of")
    assert server.log == []


def test_public_load_takes_the_options_of_the_hub(server, sign_id):
    repo, _, commit = sign_id.partition("@")
    network = neural_expm.load(repo, revision=commit, token=False, endpoint=server.url)
    assert network.checkpoint.revision == commit
    server.log.clear()
    again = neural_expm.load(sign_id, local_files_only=True)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))
    assert server.log == []
    A = inside(network.checkpoint).requires_grad_()
    network(A).sum().backward()
    assert A.grad is not None
    assert all(not parameter.requires_grad for parameter in network.parameters())
