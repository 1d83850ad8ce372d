"""What a string means: a name, a folder or a Hub id."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_material import REPO, tiny_files, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_expm import hub
from neural_expm.errors import CheckpointError, InputError, NeuralExpmError, UnknownModelError
from neural_expm.hub.address import HubId, as_hub_id, as_path

A = 0.1 * torch.ones(2, 3, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name", "main")),
        ("org/name@v1.0", HubId("org/name", "v1.0")),
        ("org/name@refs/pr/1", HubId("org/name", "refs/pr/1")),
        ("Or-g_1/na.me-2", HubId("Or-g_1/na.me-2")),
        ("expm-equivariant", None),
    ],
)
def test_hub_ids(text, expected):
    assert as_hub_id(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "org/name@",
        "org/name@../../x",
        "org/name@a..b",
        "org/name@/x",
        "org/name@x y",
        "org/name@x\n",
        "org/name\n",
        "org/na me",
        "org//name",
        "a/b/c",
        "org/..",
        "-org/name",
        "org/name.",
        "org/" + "n" * 96,
        "http://host/org/name",
    ],
)
def test_what_the_hub_would_not_allow(text):
    with pytest.raises(InputError) as caught:
        as_hub_id(text)
    assert repr(text)[1:-1] in str(caught.value)


@given(st.text(max_size=40))
@settings(deadline=None)
def test_any_string_is_a_name_a_folder_or_an_error_of_ours(text):
    for given_text in (text, f"./{text}", f"~{text}", f"org/{text}"):
        with pytest.raises(NeuralExpmError):
            hub.resolve(given_text, access=hub.Access(local_files_only=True))


@pytest.mark.parametrize("model", [5, None, b"org/name", ["org/name"]])
def test_what_is_no_string_is_said_to_be_none(model):
    with pytest.raises(InputError, match="expected a shipped name"):
        hub.load(model)


def test_two_revisions_contradict():
    with pytest.raises(InputError, match="give one of them"):
        as_hub_id("org/name@a", "b")
    assert as_hub_id("org/name@a", "a") == HubId("org/name", "a")


def test_only_a_full_commit_is_pinned():
    assert HubId("org/name", "0" * 40).pinned
    assert not HubId("org/name", "0" * 39).pinned
    assert not HubId("org/name", "main").pinned


def test_paths_are_recognised_by_their_look_or_because_they_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert as_path("org/name") is None
    for text in ("./x", "../x", "/x", "x/", "C:\\x", "~/x"):
        assert as_path(text) is not None
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert as_path("org/name") == Path("org/name")
    assert as_path("~/x") == Path.home() / "x"
    assert as_path(Path("y")) == Path("y")


def test_a_folder_comes_before_the_hub(server, published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_files(tmp_path / REPO, seed=5)
    assert torch.equal(hub.load(REPO)(A), tiny_network(5)(A))
    assert server.log == []


def test_unknown_name_lists_what_exists_and_makes_no_request(server):
    with pytest.raises(
        UnknownModelError,
        match=r"no checkpoint 'expm-equivarient'; did you mean 'expm-equi.* there are .*Hub id such as",
    ):
        hub.load("expm-equivarient")
    assert server.log == []


@pytest.mark.parametrize("make", [lambda folder: None, Path.mkdir, Path.touch])
def test_folder_without_a_checkpoint(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        hub.load(tmp_path / "x")
    assert str(tmp_path / "x") in str(caught.value)


def test_import_brings_in_neither_the_hub_nor_training():
    code = (
        "import sys, neural_expm, neural_expm.hub\n"
        "import neural_expm.networks.equivariant\n"
        "unwanted = ('huggingface_hub', 'neural_expm.training', 'neural_expm.bench')\n"
        "bad = [module for module in sys.modules if module.startswith(unwanted)]\n"
        "assert not bad, bad\n"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": root}, check=True)
