"""The published figures about ReLU networks are those that the code gives today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neural_expm.networks.relu_choice import choose_exp, choose_sqrt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BOUNDS = json.loads((RESULTS / "relu_bounds.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("key", ["exp_epsilon", "sqrt_epsilon", "exp_n", "sqrt_n"])
def test_bounds_and_sizes_are_current(key):
    for row in BOUNDS[key][::3]:
        if key.startswith("exp"):
            recipe = choose_exp(row["n"], row["radius"], row["epsilon"])
        else:
            recipe = choose_sqrt(row["n"], row["low"], row["high"], row["epsilon"])
        size = recipe.size()
        assert recipe.promise() == pytest.approx(row["proven"], rel=1e-12)
        assert recipe.promise() <= row["epsilon"]
        assert (size.depth, size.width, size.parameters) == (row["depth"], row["width"], row["parameters"])


def test_no_search_broke_a_bound_and_no_bound_is_vacuous():
    for row in BOUNDS["tightness"]:
        assert 1.0 <= row["bound_over_worst"] <= 100.0
