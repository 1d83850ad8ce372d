"""Make the ReLU checkpoints: ``python -m neural_expm.training relu COMMAND``.

Commands: ``train [NAME …]`` fits the compact networks, ``construct [NAME …]`` writes the recipes of the
proven ones, both into the package's weights and the manifest; ``frames --out FILE`` trains one budget in
frames of rising help and writes the errors. Without a NAME, all of them.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .. import checkpoints, manifest
from ..errors import TrainingError
from ..networks.relu import ReLUNet
from ..networks.relu_choice import choose_exp, choose_sqrt
from ..networks.relu_construction import ExpRecipe, Recipe
from ..networks.relu_executor import ConstructedReLUNet
from .equivariant import add_to_manifest
from .files import write_json
from .relu_fit import COVERAGE, ReLURun, fit, measure

# Steps are such that each network trains for about a minute of one core.
_BUDGETS = {"10k": (10_000, 4000), "50k": (50_000, 6000), "200k": (200_000, 1500)}
_FRAME = {"expm": (1, 2), "sqrtm": (0, 1)}  # (squarings, baseline)

TRAINED = {
    f"{function}-relu-n{n}-{label}": ReLURun(function, n, budget, *_FRAME[function], steps)
    for function in ("expm", "sqrtm")
    for n in (2, 3, 4)
    for label, (budget, steps) in _BUDGETS.items()
}

CARDS = {
    "expm": (
        "Compact trained ReLU network for n = {n}, {parameters} parameters. Built in: trace shift, scaling "
        "by 1/2 and one squaring outside the network, and the baseline I + B + B²/2, so two matrix products; "
        "the network learns the residual. That frame without the network has a mean error of {frame:.2%}, "
        "with it {mean:.3%}; int8 weights {int8:.3%}."
    ),
    "sqrtm": (
        "Compact trained ReLU network for n = {n}, {parameters} parameters. Built in: scaling by the mean "
        "eigenvalue, symmetry (upper triangle in, upper triangle out) and the baseline ½(I + B), one Newton "
        "step; the network learns the residual. That frame without the network has a mean error of "
        "{frame:.2%}, with it {mean:.3%}; int8 weights {int8:.3%}."
    ),
}

CONSTRUCTED_CARD = (
    "Constructed, not trained: {parameters} nonzero weights and biases in {depth} hidden layers of width ≤ "
    "{width}, which follow from the recipe in the file. Affine maps and ReLUs alone. {promise} The proof is "
    "in networks/relu_blocks.py and networks/relu_bounds.py."
)


def constructed() -> dict[str, Recipe]:
    """The proven networks that are shipped, by name."""
    recipes: dict[str, Recipe] = {}
    for n in (2, 3, 4):
        recipes[f"expm-relu-proven-n{n}"] = choose_exp(n, radius=2.0, epsilon=1e-6)
        recipes[f"sqrtm-relu-proven-n{n}"] = choose_sqrt(n, low=0.1, high=1.0, epsilon=1e-3)
    return recipes


def ship_trained(name: str, run: ReLURun, path: Path) -> dict[str, Any]:
    """Train, store in float16, read back, measure what was stored, and enter it in the manifest at `path`."""
    started = time.perf_counter()
    network = fit(run)
    seconds = time.perf_counter() - started
    facts = _store(network, name, run.function, torch.float16)
    stored = checkpoints.build(*checkpoints.parse(_weights(name).read_bytes(), name), name)
    measured = measure(run, stored)  # type: ignore[arg-type]
    domain: dict[str, Any] = {"n": [run.n, run.n], "norm": "2", "radius": 2.0, "structure": "general"}
    if run.function == "sqrtm":
        domain = {"n": [run.n, run.n], "structure": "spd", "gap": 0.01, "scale_free": True}
    entry = {
        **_entry(name, run.function, "float32", {**domain, "complex": False}),
        "bound": measured["conformal"][str(COVERAGE)],
        "bound_kind": "statistical",
        **facts,
        "trained_by": f"python -m neural_expm.training relu train {name}",
        "measured": {**measured, "training_seconds": round(seconds, 1)},
        "card": CARDS[run.function].format(
            n=run.n,
            parameters=measured["parameters"],
            frame=measured["frame_alone"]["mean"],
            mean=measured["relative_error"]["mean"],
            int8=measured["int8"]["mean"],
        ),
    }
    add_to_manifest(entry, path)
    return entry


def ship_constructed(name: str, recipe: Recipe, path: Path) -> dict[str, Any]:
    """Store the recipe of a proven network and enter it into the manifest at `path`."""
    facts = _store(ConstructedReLUNet(recipe), name, recipe.function, None)
    size = recipe.size()
    domain: dict[str, Any] = {"n": [recipe.n, recipe.n], "complex": False}
    if isinstance(recipe, ExpRecipe):
        bound = recipe.bound().relative
        domain |= {"norm": "inf", "radius": recipe.radius, "structure": "general"}
        promise = (
            f"Proven for ‖A‖_∞ ≤ {recipe.radius:g}: error ≤ {recipe.promise():.2e}·e^{recipe.radius:g} in "
            f"the ∞-norm, so ≤ {bound:.2e}·‖e^A‖ in the ∞-norm and in the Frobenius norm."
        )
    else:
        bound = recipe.bound().relative
        domain |= {"norm": "2", "radius": recipe.high, "structure": "spd", "gap": recipe.low / recipe.high}
        promise = (
            f"Proven for symmetric A with spectrum in [{recipe.low:g}, {recipe.high:g}]: error ≤ "
            f"{bound:.2e}·‖A^½‖ in the 2-norm and in the Frobenius norm."
        )
    entry = {
        **_entry(name, recipe.function, "float64", domain),
        "bound": bound,
        "bound_kind": "certified",
        **facts,
        "trained_by": f"python -m neural_expm.training relu construct {name}",
        "certificate": {"promise": recipe.promise(), "bound": bound, "rounding": recipe.rounding()},
        "card": CONSTRUCTED_CARD.format(
            parameters=size.parameters, depth=size.depth, width=size.width, promise=promise
        ),
    }
    add_to_manifest(entry, path)
    return entry


def frames(steps: int = 2000) -> list[dict[str, Any]]:
    """One budget in frames of rising help: what the structure outside the network is worth."""
    rows = []
    for n in (3, 4):
        for squarings, baseline in ((0, -1), (0, 1), (1, 1), (1, 2)):
            run = replace(TRAINED[f"expm-relu-n{n}-50k"], squarings=squarings, baseline=baseline, steps=steps)
            network = fit(run)
            products = squarings + (1 if baseline == 2 else 0)
            rows.append({"run": asdict(run), "matrix_products": products, **measure(run, network)})
            print(
                f"n={n} s={squarings} baseline={baseline}: {rows[-1]['relative_error']['mean']:.3%}",
                flush=True,
            )
    return rows


def _weights(name: str) -> Path:
    return manifest.PACKAGE / "weights" / f"{name}.safetensors"


def _store(network: ReLUNet, name: str, function: str, dtype: torch.dtype | None) -> dict[str, Any]:
    return checkpoints.save(network, _weights(name), name=name, function=function, family="relu", dtype=dtype)


def _entry(name: str, function: str, dtype: str, domain: dict[str, Any]) -> dict[str, Any]:
    fixed = {"family": "relu", "repo": "", "revision": "", "license": "Apache-2.0"}
    return {"name": name, "function": function, "dtype": dtype, "domain": domain, **fixed}


def _selected(names: list[str], known: dict[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(names) - set(known)):
        raise TrainingError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return {name: known[name] for name in names or known}


def main(argv: list[str]) -> int:
    """The command line; `argv` without the program's name."""
    parser = argparse.ArgumentParser(prog="python -m neural_expm.training relu", description=__doc__)
    parser.add_argument("command", choices=["train", "construct", "frames"])
    parser.add_argument("names", nargs="*", help="checkpoints to make (default: all of this kind)")
    parser.add_argument("--out", type=Path, help="frames: the JSON file to write")
    options = parser.parse_args(argv)
    path = manifest.manifest_path()
    if options.command == "train":
        for name, run in _selected(options.names, TRAINED).items():
            entry = ship_trained(name, run, path)
            print(entry["card"], flush=True)
    elif options.command == "construct":
        for name, recipe in _selected(options.names, constructed()).items():
            print(ship_constructed(name, recipe, path)["card"], flush=True)
    else:
        if options.out is None:
            raise TrainingError("frames needs --out FILE, the JSON file to write")
        rows = frames()
        write_json(
            options.out, {"command": f"python -m neural_expm.training relu {' '.join(argv)}", "rows": rows}
        )
    return 0
