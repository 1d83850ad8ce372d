"""Fixtures that keep every test inside its own cache and away from the real Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_material import REPO, TinyNet, tiny_files
from hub_server import LoopbackHub
from huggingface_hub import constants

from neural_expm import hub as hub_module
from neural_expm import networks
from neural_expm.networks import equivariant


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own cache and no token; whatever would reach the real Hub is refused at once."""
    for variable in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _use_endpoint(monkeypatch, "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setattr(equivariant, "TinyNet", TinyNet, raising=False)
    monkeypatch.setitem(networks.FAMILIES, "equivariant/expm", "equivariant:TinyNet")
    monkeypatch.setattr(hub_module, "_known", {})


def _use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    """An empty Hub, which HF_ENDPOINT would name."""
    with LoopbackHub() as hub:
        _use_endpoint(monkeypatch, hub.url)
        yield hub


@pytest.fixture
def published(server: LoopbackHub, tmp_path: Path) -> str:
    """The commit of the tiny checkpoint in REPO."""
    return server.repository(REPO).commit(tiny_files(tmp_path / "published"))
