"""Every table of the README is what its result file says."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import pytest

from neural_expm.bench import readme

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


@pytest.mark.parametrize("script", ["relu_tables", "transformer_tables", "speed_tables"])
def test_tables_of_the_scripts(monkeypatch, script):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    tables = importlib.import_module(script).TABLES
    text = README.read_text(encoding="utf-8")
    for name in tables:
        assert f"<!-- results:{name} -->" in text
    assert importlib.import_module("readme_tables").filled(text, tables) == text


def test_tables_of_the_benchmark(tmp_path):
    copy = tmp_path / "README.md"
    shutil.copy(README, copy)
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    assert readme.update(copy) == [
        "times",
        "times_assembled",
        "apps",
        "apps_assembled",
        "apps_eager",
        "functions",
        "functions_assembled",
        "functions_eager",
        "models",
    ]
    assert copy.read_text(encoding="utf-8") == README.read_text(encoding="utf-8")
