"""benchmarks/scaling.py: columns that may be missing, floors, and the share of the products."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "scaling.py"


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.setenv("NEURAL_EXPM_COMPILE", "0")
    spec = importlib.util.spec_from_file_location("scaling_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CELL_S", 0.0)
    return module


def test_columns_come_with_their_packages_and_go_without(scaling, monkeypatch):
    A = scaling.ginibre(3, 4, torch.float32)
    for name in ("jax", "torch_matfunc", "scipy.linalg"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert set(scaling.columns(A)) == {"expm", "expm, backward", "torch", "torch, backward"}
    peer = ModuleType("torch_matfunc.linalg")
    peer.matrix_exp = torch.linalg.matrix_exp
    monkeypatch.setitem(sys.modules, "torch_matfunc", ModuleType("torch_matfunc"))
    monkeypatch.setitem(sys.modules, "torch_matfunc.linalg", peer)
    assert torch.equal(scaling.columns(A)["torch_matfunc"](), torch.linalg.matrix_exp(A))


@pytest.mark.parametrize("n", [4, 16])
def test_rows_have_floors_and_from_16_on_the_share_of_the_products(scaling, monkeypatch, n):
    monkeypatch.setattr(scaling, "BATCHES", (1, 300))
    monkeypatch.setattr(scaling, "CHUNK", 1 << 16)  # several chunks
    results = scaling.measure([n], torch.float32, 10.0)
    assert [row["batch"] for row in results["rows"]] == [1, 300]
    for row in results["rows"]:
        ns = row["ns"]
        assert {"expm", "torch", "products", "bandwidth"} <= set(ns)
        assert not {"bmm", "copy", "mm", "bmm by chunks"} & set(ns)
        assert ("products / expm" in row) == (n >= 16)
        if n >= 16:
            assert row["products / expm"] == ns["products"] / ns["expm"]
        assert row["error"]["expm"] < 1e-6
