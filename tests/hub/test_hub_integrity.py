"""What arrives from the Hub or lies in a folder is believed only after it has been verified."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_material import REPO, tiny_checkpoint, tiny_files, tiny_network
from huggingface_hub import constants

from neural_expm import hub
from neural_expm.checkpoints import MAX_BYTES
from neural_expm.errors import CheckpointError, HubError
from neural_expm.hub import proof
from neural_expm.hub.folder import write_folder

A = 0.1 * torch.ones(2, 3, 3, dtype=torch.float64)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def cached_weights(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").glob("models--*/snapshots/*/model.safetensors"))


def test_tampered_file_is_fetched_once_more_then_refused_with_both_hashes(server, published, tmp_path):
    files = server.repository(REPO).commits[published]
    promised = hashlib.sha256(files["model.safetensors"]).hexdigest()
    files["model.safetensors"] = flipped(files["model.safetensors"])
    found = hashlib.sha256(files["model.safetensors"]).hexdigest()
    with pytest.raises(CheckpointError) as caught:
        hub.load(REPO)
    message = str(caught.value)
    assert promised in message
    assert found in message
    assert f"{server.url}/{REPO}/resolve/{published}/model.safetensors was fetched twice" in message
    assert server.count("GET", "model.safetensors") == 2
    assert cached_weights(tmp_path) == []
    assert not any(found == path.name for path in tmp_path.rglob("*"))


def test_damage_in_transit_is_mended_by_the_second_download(server, published):
    def once_damaged(handler, method, file, body):
        if file != "model.safetensors" or method != "GET" or server.count("GET", file) > 1:
            return False
        handler.send_file(flipped(body), published, server.etag(file, body))
        return True

    server.fault = once_damaged
    assert torch.equal(hub.load(REPO)(A), tiny_network()(A))
    assert server.count("GET", "model.safetensors") == 2


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-7], lambda content: b""])
def test_damaged_cache_is_mended(server, published, tmp_path, damage):
    hub.load(REPO)
    (weights,) = cached_weights(tmp_path)
    weights.resolve().write_bytes(damage(weights.read_bytes()))
    with pytest.raises(CheckpointError, match=r"expected.*go online"):
        hub.resolve(f"{REPO}@{published}", access=hub.Access(local_files_only=True))
    assert hub.resolve(f"{REPO}@{published}").revision == published
    assert server.count("GET", "model.safetensors") == 2


def test_damaged_config_in_the_cache_is_mended(server, published, tmp_path):
    hub.load(REPO)
    (config,) = (tmp_path / "cache").glob("models--*/snapshots/*/config.json")
    config.resolve().write_text('{"format": 1,')
    assert hub.resolve(f"{REPO}@{published}").revision == published


def test_file_that_is_shorter_than_promised_names_both_sizes(server, published):
    files = server.repository(REPO).commits[published]
    size = len(files["model.safetensors"])
    files["model.safetensors"] = files["model.safetensors"][:-100]
    with pytest.raises(CheckpointError, match=f"has {size - 100} bytes, expected {size}"):
        hub.load(REPO)


def test_connection_that_breaks_is_resumed_or_redone(server, published):
    def breaks(handler, method, file, body):
        if file != "model.safetensors" or method != "GET" or server.count("GET", file) > 1:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        handler.close_connection = True
        return True

    server.fault = breaks
    assert torch.equal(hub.load(REPO)(A), tiny_network()(A))


def test_server_that_stops_sending_is_given_up(server, published, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    stop, wait = threading.Event(), threading.Event.wait

    def stalls(handler, method, file, body):
        if file != "model.safetensors" or method != "GET":
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        wait(stop, 30)
        return True

    server.fault = stalls
    try:
        with pytest.raises(HubError, match=r"model\.safetensors.*no usable answer"):
            hub.load(REPO)
    finally:
        stop.set()


def test_wrong_etag_does_not_pass_off_old_weights_as_new(server, published, tmp_path):
    digest = server.etag
    server.etag = lambda file, body: "0" * 64 if file == "model.safetensors" else digest(file, body)
    old = hub.load(REPO)
    moved = server.repository(REPO).commit(tiny_files(tmp_path / "two", seed=1))
    new = hub.load(REPO)
    assert torch.equal(old(A), tiny_network(0)(A))
    assert torch.equal(new(A), tiny_network(1)(A))
    assert new.checkpoint.revision == moved


def test_absurd_size_is_refused_before_the_download(server, published):
    def huge(handler, method, file, body):
        if file != "model.safetensors":
            return False
        handler.answer(200, b"", X_Repo_Commit=published, ETag='"x"', Content_Length=str(MAX_BYTES + 1))
        return True

    server.fault = huge
    with pytest.raises(CheckpointError, match=f"{MAX_BYTES + 1} bytes, more than the {MAX_BYTES} allowed"):
        hub.load(REPO)
    assert server.count("GET", "model.safetensors") == 0


@pytest.mark.parametrize(
    "name",
    [
        "../../secret",
        "/etc/passwd",
        "a/../../secret",
        "..\\secret",
        "C:\\secret",
        "C:secret",
        "",
        ".",
        "a//b",
        " a",
    ],
)
def test_file_names_that_leave_the_folder_are_refused_before_any_request_for_them(server, tmp_path, name):
    files = tiny_files(tmp_path / "source")
    config = json.loads(files["config.json"])
    files["config.json"] = json.dumps({**config, "file": name}).encode()
    server.repository(REPO).commit(files)
    with pytest.raises(CheckpointError, match="leaves the folder"):
        hub.load(REPO)
    assert not any("secret" in path or "passwd" in path for _, path in server.log)


def test_symlink_out_of_a_folder_is_refused(tmp_path):
    record, content = tiny_checkpoint()
    outside = tmp_path / "elsewhere.safetensors"
    outside.write_bytes(content)
    folder = tmp_path / "folder"
    write_folder(record, content, folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"is a link to .*outside its folder"):
        hub.load(folder)
    (folder / "model.safetensors").unlink()
    (folder / "real.safetensors").write_bytes(content)
    (folder / "model.safetensors").symlink_to("real.safetensors")
    assert torch.equal(hub.load(folder)(A), tiny_network()(A))


def test_snapshot_of_the_cache_is_a_folder_too(server, published, tmp_path):
    hub.load(REPO)
    (weights,) = cached_weights(tmp_path)
    assert weights.is_symlink()
    assert torch.equal(hub.load(weights.parent)(A), tiny_network()(A))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda entry: entry.pop("sha256"), "missing keys"),
        (lambda entry: entry.update(surprise=1), "unknown keys"),
        (lambda entry: entry.update(format=2), "format"),
        (lambda entry: entry.update(sha256="xyz"), "sha256"),
        (lambda entry: entry.update(size=-1), "size"),
        (lambda entry: entry.update(size=True), "size"),
        (lambda entry: entry.update(bound="tiny"), "bound"),
        (lambda entry: entry.update(bound=-1.0), "bound"),
        (lambda entry: entry.update(name="../up"), "name"),
        (lambda entry: entry.update(name=7), "name"),
        (lambda entry: entry.update(file=["a"]), "file"),
        (lambda entry: entry.update(dtype="complex9"), "dtype"),
        (lambda entry: entry.update(function="logm"), "function"),
        (lambda entry: entry.update(measured=[1]), "measured"),
        (lambda entry: entry.update(card="\x1b[2Jfake"), "card .* expected text without control characters"),
        (lambda entry: entry.update(domain=5), "domain"),
        (lambda entry: entry.update(domain={"n": "all"}), "domain"),
        (lambda entry: entry.update(domain={"radius": "big"}), "domain"),
    ],
)
def test_config_is_held_to_its_schema(tmp_path, change, says):
    folder = tmp_path / "folder"
    tiny_files(folder)
    entry = json.loads((folder / "config.json").read_text())
    change(entry)
    (folder / "config.json").write_text(json.dumps(entry))
    with pytest.raises(CheckpointError, match=says) as caught:
        hub.load(folder)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "nonsense", '{"format": 1, "format": 1}', "[" * 100_000, '{"a": NaN}', "\xff"]
)
def test_config_that_is_no_json_object(tmp_path, text):
    folder = tmp_path / "folder"
    tiny_files(folder)
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="does not describe a neural_expm checkpoint"):
        hub.load(folder)


def test_pickle_is_never_read(server, tmp_path):
    marker = tmp_path / "executed"

    class Exploit:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save(Exploit(), tmp_path / "exploit")
    content = (tmp_path / "exploit").read_bytes()
    record, _ = tiny_checkpoint()
    described = replace(record, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    write_folder(described, content, tmp_path / "folder")
    server.repository(REPO).commit({path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()})
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        hub.load(REPO)
    assert not marker.exists()


def test_certified_bound_is_proven_again_before_it_is_believed(server, tmp_path, monkeypatch):
    def at_least_a_quarter(network, record):
        if record.bound < 0.25:
            raise proof.Unproven("0.25 is all that can be proven")

    monkeypatch.setitem(proof.PROOFS, "equivariant/expm", at_least_a_quarter)
    server.repository("tester/true").commit(tiny_files(tmp_path / "true", bound_kind="certified", bound=0.25))
    assert hub.load("tester/true").checkpoint.bound_kind == "certified"
    server.repository("tester/false").commit(
        tiny_files(tmp_path / "false", bound_kind="certified", bound=1e-7)
    )
    with pytest.raises(
        CheckpointError, match=r"bound of 1e-07 certified, but its weights do not prove it: 0\.25"
    ):
        hub.load("tester/false")
    with pytest.raises(CheckpointError, match="do not prove it"):
        hub.load(tmp_path / "false")


def test_certified_bound_without_a_known_proof_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "PROOFS", {})
    tiny_files(tmp_path / "claim", bound_kind="certified")
    with pytest.raises(CheckpointError, match="no proof for 'equivariant'"):
        hub.load(tmp_path / "claim")


LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
from neural_expm import hub, networks
networks.FAMILIES["equivariant/expm"] = "equivariant:EquivariantTransformer"
for spec in sys.argv[2:]:
    print(hub.load(spec).checkpoint.revision)
"""


# Modes do not bind root; without this capability they do.
UNPRIVILEGED = [] if os.name == "nt" or os.geteuid() else ["setpriv", "--bounding-set=-dac_override"]


def in_a_process(home: Path, *specs: str, prefix: Sequence[str] = (), **environment: str) -> subprocess.Popen:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", LOAD, str(Path(__file__).parents[2]), *specs],
        env={**clean, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_share_one_cache_and_the_environment_is_obeyed(server, published, tmp_path):
    home = tmp_path / "home"
    settings = {
        "HF_ENDPOINT": server.url,
        "TQDM_POSITION": "-1",
    }  # the latter: a progress bar without a terminal
    processes = [in_a_process(home, REPO, **settings) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [out.strip() for out, _ in outputs] == [published] * 2, outputs
    assert server.count("GET", "model.safetensors") == 1
    assert any("model.safetensors" in err for _, err in outputs)
    assert (home / "hub" / f"models--{REPO.replace('/', '--')}").is_dir()
    before = len(server.log)
    out, err = in_a_process(home, REPO, HF_ENDPOINT=server.url, HF_HUB_OFFLINE="1").communicate(timeout=300)
    assert out.strip() == published, err
    assert len(server.log) == before


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
@pytest.mark.skipif(bool(UNPRIVILEGED) and shutil.which("setpriv") is None, reason="root without setpriv")
def test_read_only_cache_serves_what_it_has(server, published, tmp_path):
    home, pinned = tmp_path / "home", f"{REPO}@{published}"
    hub.load(REPO, cache_dir=home / "hub")
    server.log.clear()
    for path in (home, *home.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    process = in_a_process(home, pinned, REPO, prefix=UNPRIVILEGED, HF_ENDPOINT=server.url)
    out, err = process.communicate(timeout=300)
    for path in (home, *home.rglob("*")):
        path.chmod(0o755)
    assert out.split() == [published, published], err
    assert {verb for verb, _ in server.log} == {"HEAD"}


def test_cache_that_cannot_be_written_is_named(server, published, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write the cache .*HF_HOME"):
        hub.load(REPO, cache_dir=tmp_path / "file")
