"""Depth, width and parameters of the constructed ReLU networks against ε and n, and how tight the bounds are.

    python benchmarks/relu_bounds.py            # writes results/relu_bounds.json and results/relu_bounds.png

The lines of theory: at fixed n and radius the depth is S(m + 2) − 1 with m, S = O(log 1/ε) apart from log log
terms, fitted here as a + b·log(1/ε) by least squares; the width is at most 6n³ + 4n². Beside them stands what
arXiv 2602.07800 says of itself: "we prove bounds on the width and depth of ReLU networks needed to
approximate the matrix exponential to an arbitrary precision".
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from relu_cases import box_matrices, climb_exp, climb_sqrt, exp_error, spd_matrices, sqrt_error  # noqa: E402

from neural_expm.networks.relu_choice import choose_exp, choose_sqrt  # noqa: E402
from neural_expm.networks.relu_construction import Recipe, recipe_to_config  # noqa: E402
from neural_expm.networks.relu_executor import ConstructedReLUNet  # noqa: E402

RESULTS = Path(__file__).parent / "results"
EPSILONS = [10.0**-k for k in range(1, 11)]
SIZES = range(2, 9)
PAPER = (
    "arXiv 2602.07800: bounds on the width and depth of ReLU networks needed to approximate the matrix "
    "exponential to an arbitrary precision"
)


def row(recipe: Recipe, epsilon: float) -> dict[str, Any]:
    """Size and bound of a recipe, as it goes into the JSON."""
    size = recipe.size()
    return {
        "epsilon": epsilon,
        **recipe_to_config(recipe),
        "proven": recipe.promise(),
        "rounding_float64": recipe.rounding("float64"),
        "depth": size.depth,
        "width": size.width,
        "parameters": size.parameters,
        "dense_parameters": size.dense_parameters,
    }


def worst_exp(recipe: Recipe) -> float:
    """Largest error found over extreme and searched matrices, in the units of the bound."""
    net = ConstructedReLUNet(recipe)
    matrices = box_matrices(recipe.n, recipe.radius, 500, seed=0)
    return max(exp_error(net, matrices).max().item(), climb_exp(net, matrices, steps=30).max().item())


def worst_sqrt(recipe: Recipe) -> float:
    """The same for the square root."""
    net = ConstructedReLUNet(recipe)
    matrices = spd_matrices(recipe.n, recipe.low, recipe.high, 1000, seed=0)
    return max(sqrt_error(net, matrices).max().item(), climb_sqrt(net, steps=30, seed=0).max().item())


def tightness() -> list[dict[str, Any]]:
    """Proven bound and worst error found, for the figures that the project publishes and a few more."""
    rows = []
    for n, radius, epsilon in (
        (3, 1.0, 1e-3),
        (3, 2.0, 1e-6),
        (5, 15.0, 5e-2),
        (4, 2.0, 1e-4),
        (2, 4.0, 1e-8),
    ):
        recipe = choose_exp(n, radius, epsilon)
        rows.append({**row(recipe, epsilon), "worst_found": worst_exp(recipe)})
    for n in (2, 3, 4):
        recipe = choose_sqrt(n, low=0.1, high=1.0, epsilon=1e-3)
        rows.append({**row(recipe, 1e-3), "worst_found": worst_sqrt(recipe)})
    for entry in rows:
        entry["bound_over_worst"] = entry["proven"] / entry["worst_found"]
    return rows


def logarithmic_fit(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Depth ≈ a + b·log₁₀(1/ε)."""
    x = [-math.log10(entry["epsilon"]) for entry in rows]
    slope, intercept = np.polyfit(x, [entry["depth"] for entry in rows], 1)
    return {"intercept": float(intercept), "per_decade": float(slope)}


def plot(results: dict[str, Any], path: Path) -> None:
    """Four panels: depth and parameters against ε, width and parameters against n."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), constrained_layout=True)
    by_epsilon = {
        "exp, n = 3, ‖A‖∞ ≤ 2": results["exp_epsilon"],
        "sqrt, n = 3, [0.1, 1]": results["sqrt_epsilon"],
    }
    for (label, rows), color in zip(by_epsilon.items(), ("C0", "C1"), strict=True):
        epsilon = np.array([entry["epsilon"] for entry in rows])
        fit = logarithmic_fit(rows)
        theory = fit["intercept"] + fit["per_decade"] * np.log10(1 / epsilon)
        axes[0, 0].plot(epsilon, [entry["depth"] for entry in rows], "o", color=color, label=label)
        axes[0, 0].plot(
            epsilon, theory, "--", color=color, label=f"O(log 1/ε): {fit['per_decade']:.1f} a decade"
        )
        axes[0, 1].plot(epsilon, [entry["parameters"] for entry in rows], "o-", color=color, label=label)
    by_size = {"exp, ‖A‖∞ ≤ 2": results["exp_n"], "sqrt, [0.1, 1]": results["sqrt_n"]}
    n = np.array(list(SIZES))
    for (label, rows), color in zip(by_size.items(), ("C0", "C1"), strict=True):
        axes[1, 0].plot(n, [entry["width"] for entry in rows], "o", color=color, label=f"{label}, ε = 1e-3")
        axes[1, 1].plot(
            n, [entry["parameters"] for entry in rows], "o-", color=color, label=f"{label}, ε = 1e-3"
        )
    axes[1, 0].plot(n, 6 * n**3 + 4 * n**2, "--", color="C0", label="exp: ≤ 6n³ + 4n²")
    axes[1, 0].plot(n, 8 * n**3 + 2 * n**2, "--", color="C1", label="sqrt: ≤ 8n³ + 2n²")
    titles = ("hidden layers", "nonzero parameters", "width", "nonzero parameters")
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    for axis in axes[0]:
        axis.set_xscale("log")
        axis.invert_xaxis()
        axis.set_xlabel("proven ε")
    for axis in axes[1]:
        axis.set_xlabel("n")
    for axis in (axes[0, 1], axes[1, 0], axes[1, 1]):
        axis.set_yscale("log")
    figure.suptitle(f"Constructed ReLU networks with proven error (exp: of e^R)\n{PAPER}", fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Write the JSON and the plot."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "command": "python benchmarks/relu_bounds.py",
        "paper": PAPER,
        "exp_epsilon": [row(choose_exp(3, 2.0, epsilon), epsilon) for epsilon in EPSILONS],
        "sqrt_epsilon": [row(choose_sqrt(3, 0.1, 1.0, epsilon), epsilon) for epsilon in EPSILONS],
        "exp_n": [row(choose_exp(n, 2.0, 1e-3), 1e-3) for n in SIZES],
        "sqrt_n": [row(choose_sqrt(n, 0.1, 1.0, 1e-3), 1e-3) for n in SIZES],
        "tightness": tightness(),
    }
    results["exp_depth_fit"] = logarithmic_fit(results["exp_epsilon"])
    results["sqrt_depth_fit"] = logarithmic_fit(results["sqrt_epsilon"])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "relu_bounds.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot(results, RESULTS / "relu_bounds.png")


if __name__ == "__main__":
    main()
