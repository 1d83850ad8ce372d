"""publish, pull, list and show, and the from_pretrained conventions: there and back over HTTP."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch
from hub_material import REPO, TinyNet, tiny_checkpoint, tiny_files, tiny_network
from huggingface_hub import ModelCard

from neural_expm import hub
from neural_expm.domain import Domain
from neural_expm.errors import CheckpointError, HubError, InputError
from neural_expm.manifest import Checkpoint, read_manifest
from neural_expm.training.__main__ import main as training
from neural_expm.training.publish import list_checkpoints, publish, pull, show

A = 0.1 * torch.ones(2, 3, 3, dtype=torch.float64)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder on disk."""
    tiny_files(tmp_path / "mine")
    return tmp_path / "mine"


def test_publish_then_load_gives_the_same_network(server, folder, capsys):
    assert publish([str(folder), "--repo", "me/exp", "--private"]) == 0
    out = capsys.readouterr().out
    commit = server.repositories["me/exp"].refs["main"]
    assert f"uploaded me/exp@{commit}" in out
    entry = json.loads(out[out.index("{") :])
    assert (entry["repo"], entry["revision"]) == ("me/exp", commit)
    assert set(server.repositories["me/exp"].commits[commit]) == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    assert server.created[0].get("private") or server.created[0].get("visibility") == "private"
    network = hub.load(f"me/exp@{commit}")
    assert torch.equal(network(A), tiny_network()(A))
    assert network.checkpoint.to_json() == entry


def test_publishing_again_moves_main(server, folder, tmp_path, capsys):
    publish([str(folder), "--repo", "me/exp"])
    tiny_files(tmp_path / "better", seed=1)
    publish([str(tmp_path / "better"), "--repo", "me/exp"])
    assert len(server.repositories["me/exp"].commits) == 2
    assert torch.equal(hub.load("me/exp")(A), tiny_network(1)(A))


def test_dry_run_writes_the_folder_and_makes_no_request(server, folder, tmp_path, capsys):
    assert publish([str(folder), "--repo", "me/exp", "--dry-run", "--folder", str(tmp_path / "out")]) == 0
    assert "nothing was uploaded" in capsys.readouterr().out
    assert server.log == []
    assert torch.equal(hub.load(tmp_path / "out")(A), tiny_network()(A))


def test_model_card_states_what_the_record_states(server, folder, tmp_path):
    publish([str(folder), "--repo", "me/exp", "--dry-run", "--folder", str(tmp_path / "out")])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    record, _ = tiny_checkpoint()
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "neural_expm"
    assert {"expm", "equivariant"} <= set(card.data.tags)
    assert {result.metric_value for result in card.data.eval_results} == {0.25, 0.01, 0.03}
    for text in (
        str(record.domain),
        "0.25",
        "statistical",
        "| median | 0.01 |",
        "| samples | 1000 |",
        record.trained_by,
        record.license,
        record.sha256,
        record.card,
        'model="me/exp"',
    ):
        assert text in card.text


def test_pull_pins_a_repository_in_a_local_manifest(server, published, tmp_path, capsys):
    assert training(["pull", REPO, "--to", str(tmp_path / "local")]) == 0
    records = read_manifest(tmp_path / "local" / "checkpoints_manifest.json", tmp_path / "local")
    assert records["tiny"].repo == REPO
    assert records["tiny"].revision == published
    before = len(server.log)
    assert torch.equal(hub.load(tmp_path / "local" / "tiny")(A), tiny_network()(A))
    assert len(server.log) == before
    card = server.repository(REPO).commits[published]["README.md"]
    assert (tmp_path / "local" / "tiny" / "README.md").read_bytes() == card


def test_pull_keeps_the_others_and_replaces_its_own(server, published, tmp_path):
    server.repository("me/second").commit(tiny_files(tmp_path / "second", seed=1, name="second"))
    for repo in (REPO, "me/second", REPO):
        pull([repo, "--to", str(tmp_path / "local")])
    records = read_manifest(tmp_path / "local" / "checkpoints_manifest.json", tmp_path / "local")
    assert set(records) == {"tiny", "second"}


def test_list_shows_what_is_here(server, published, folder, capsys):
    hub.load(REPO)
    server.log.clear()
    assert list_checkpoints(["--folder", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["name", "function", "family", "dtype"]
    (cached,) = [line for line in lines if f"cached {REPO}@{published[:12]}" in line]
    (local,) = [line for line in lines if line.endswith(str(folder))]
    for line in (cached, local):
        assert line.startswith("tiny  ")
        assert "0.25 statistical" in line
    assert server.log == []
    assert list_checkpoints(["--function", "sign", "--folder", str(folder)]) == 0
    assert "tiny" not in capsys.readouterr().out
    assert list_checkpoints(["--folder", str(folder.parent)]) == 0  # the folder that it lies in
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith(str(folder))] == [local]


def test_show_prints_domain_bound_and_card(folder, capsys):
    assert show([str(folder)]) == 0
    out = capsys.readouterr().out
    record, _ = tiny_checkpoint()
    for text in ("0.25 statistical", str(record.domain), record.sha256, record.card, str(folder)):
        assert text in out


def test_show_prints_no_control_characters(tmp_path, capsys):
    tiny_files(tmp_path / "x", measured={"note": "\x9b2Jfake", "p95": 0.1})
    assert show([str(tmp_path / "x")]) == 0
    assert capsys.readouterr().out.replace("\n", "").isprintable()


def test_commands_report_errors_in_one_line(server, tmp_path, capsys):
    assert training(["show", str(tmp_path / "absent")]) == 1
    assert str(tmp_path / "absent") in capsys.readouterr().err
    assert training(["publish", str(tmp_path / "absent"), "--repo", "me/exp"]) == 1
    assert training(["pull", "me/absent", "--to", str(tmp_path)]) == 1
    assert "no repository 'me/absent'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "repo", ["", "noslash", "a/b/c", "../up/down", "a/..", "me/exp@branch", "org/na--me", "/abs/path"]
)
def test_bad_repository_names(repo, folder):
    with pytest.raises(InputError, match="org/name"):
        publish([str(folder), "--repo", repo, "--dry-run"])


def test_upload_that_is_refused_says_why(server, folder):
    from hub_server import Handler

    original = Handler.do_POST
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handler, "do_POST", lambda self: self._begin() and self.answer(403))
        with pytest.raises(
            HubError, match=f"cannot upload .* to {server.url}/me/exp: the token may not write"
        ):
            publish([str(folder), "--repo", "me/exp"])
    assert Handler.do_POST is original


def test_upload_to_a_dead_endpoint_fails_within_seconds(folder):
    start = time.monotonic()
    with pytest.raises(HubError, match="HF_ENDPOINT"):
        publish([str(folder), "--repo", "me/exp"])
    assert time.monotonic() - start < 5


def test_upload_offline_is_refused_before_any_request(server, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="offline"):
        publish([str(folder), "--repo", "me/exp"])
    assert server.log == []


def test_from_pretrained_gives_a_copy_of_its_own_class(server, published):
    network = TinyNet.from_pretrained(REPO)
    assert torch.equal(network(A), tiny_network()(A))
    assert network is not TinyNet.from_pretrained(REPO, revision=published)
    assert not network.training

    class Other(TinyNet):
        pass

    with pytest.raises(CheckpointError, match=r"holds a TinyNet, not a Other; call TinyNet\.from_pretrained"):
        Other.from_pretrained(REPO)


def test_save_pretrained_round_trip(tmp_path):
    network = tiny_network(3)
    with pytest.raises(CheckpointError, match="no record"):
        network.save_pretrained(tmp_path / "saved")
    record = Checkpoint(
        name="mine",
        function="expm",
        family="equivariant",
        dtype="float64",
        domain=Domain(n=(2, 8), radius=2.0),
        bound=0.03,
        bound_kind="statistical",
    )
    network.save_pretrained(tmp_path / "saved", checkpoint=record)
    again = TinyNet.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(A), network(A))
    assert (again.checkpoint.domain, again.checkpoint.bound) == (record.domain, record.bound)
    again.save_pretrained(tmp_path / "twice")
    twice = TinyNet.from_pretrained(tmp_path / "twice")
    assert replace(twice.checkpoint, root=again.checkpoint.root) == again.checkpoint


def test_push_to_hub(server):
    record, _ = tiny_checkpoint()
    pin = tiny_network(4).push_to_hub("me/pushed", checkpoint=record, private=True)
    assert torch.equal(hub.load(pin)(A), tiny_network(4)(A))
