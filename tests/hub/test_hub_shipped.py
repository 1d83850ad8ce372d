"""What ships with the package passes its own checks on the way to the Hub and back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from neural_expm import checkpoints, hub
from neural_expm.checkpoints import fingerprint, load_record, serialize
from neural_expm.errors import CheckpointError
from neural_expm.hub.folder import write_folder
from neural_expm.hub.proof import prove
from neural_expm.manifest import Checkpoint, shipped
from neural_expm.training.publish import publish, pull

RECORDS = list(shipped().values())
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


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_to_the_hub_and_back(server, record, capsys):
    publish([record.name, "--repo", f"me/{record.name}"])
    entry = json.loads((out := capsys.readouterr().out)[out.index("{") :])
    network = hub.load(f"me/{record.name}@{entry['revision']}")
    assert type(network) is type(load_record(record))
    A = inside(record)
    assert torch.equal(network(A), load_record(record)(A))
    assert replace(network.checkpoint, root=record.root, file=record.file, repo="", revision="") == record


@pytest.mark.parametrize("record", [r for r in CERTIFIED if r.bound > 1e-12], ids=lambda record: record.name)
def test_bound_that_claims_more_than_the_weights_prove_is_refused(record):
    if record.function != "expm" and record.family == "equivariant":
        pytest.skip("certified for each matrix as it runs: the record only states a limit")
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
    from neural_expm.networks.composition import EquivariantSign

    record = shipped()["sign-equivariant"]
    A = inside(record)
    assert torch.equal(EquivariantSign.from_pretrained("sign-equivariant")(A), load_record(record)(A))


def test_training_a_copy_leaves_the_original_alone(tmp_path):
    from neural_expm.networks.composition import EquivariantSign

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
