"""From a finished run to a checkpoint in the package: ``python -m neural_expm.training ship runs/NAME``.

The moving average is stored in float16, read back through the public loader, and measured as it will run; the
manifest entry is written from those figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from neural_expm import checkpoints, manifest
from neural_expm.errors import TrainingError
from neural_expm.training.config import RunConfig
from neural_expm.training.evaluate import COUNT, measure
from neural_expm.training.files import write_json
from neural_expm.training.fit import build_network
from neural_expm.training.recipes import RECIPES, recipe

#: What the entry of each distribution says about where its bound holds.
DOMAINS: dict[str, dict[str, Any]] = {
    "ginibre": {"norm": "2", "radius": 2.0, "structure": "general"},
    "sign_symmetric": {"structure": "symmetric", "gap": 0.2, "scale_free": True},
    "sign_general": {"structure": "general", "gap": 0.2, "scale_free": True, "condition": 5.0},
    "spd": {"structure": "spd", "gap": 0.01, "scale_free": True},
}

#: What each frame does around the network: the first part of the model card.
CARDS = {
    "expm": "trace shift, A/2 and one squaring, Taylor polynomial of degree 2; the network learns the "
    "residual from A/‖A‖ and its square",
    "sign": "A is normalised; the network learns the residual of a baseline (odd polynomial; for general A "
    "one Newton step and its reciprocal); Riccati steps and a last Newton–Schulz product polish the sum",
    "sqrtm": "A is normalised; the network learns the residual of a polynomial baseline; Newton steps with "
    "learned scalars polish the sum",
}


def load_run(folder: Path) -> tuple[nn.Module, RunConfig]:
    """Return the averaged network and the configuration of a run folder."""
    try:
        state = torch.load(folder / "state.pt", weights_only=True)
        config = RunConfig.from_dict(state["config"])
        net = build_network(config)
        net.load_state_dict(state["average"])
    except (OSError, RuntimeError, KeyError, EOFError, UnpicklingError) as error:
        raise TrainingError(f"{folder} holds no finished run: {error}; train it with `fit`") from error
    return net.eval().requires_grad_(False), config


def shipped_runs(names: list[str]) -> list[tuple[nn.Module, RunConfig]]:
    """Return (network, configuration) of the shipped recipes, or of those named."""
    known = [name for name in RECIPES if name in manifest.shipped()]
    if unknown := sorted(set(names) - set(known)):
        raise TrainingError(f"not shipped: {', '.join(unknown)}; there are {', '.join(known)}")
    return [(checkpoints.load_record(manifest.find(name)), recipe(name)) for name in names or known]


def card(config: RunConfig, measured: dict[str, Any]) -> str:
    """Return the text of the model card: what is built in, and what each part is worth."""
    parts = ", ".join(f"{name} {errors['mean']:.3%}" for name, errors in measured["parts"].items())
    encoding = config.network["encoding"]
    return (
        f"Encoder–decoder transformer, {encoding} tokens, one checkpoint for n = {config.sizes[0]} … "
        f"{config.sizes[-1]}. Built in: {CARDS[config.network['frame']['kind']]}. "
        f"Mean relative error: {parts}. "
        f"Its own gradient has a mean relative error of {measured['gradient_error']['mean']:.2%} "
        'against the Fréchet derivative; grad="exact" gives the true one.'
    )


def ship(folder: Path, count: int = COUNT, path: Path | None = None) -> dict[str, Any]:
    """Store, measure and enter one run into the manifest at ``path``; returns the entry."""
    path = path or manifest.manifest_path()
    net, config = load_run(folder)
    weights = manifest.PACKAGE / "weights" / f"{config.name}.safetensors"
    facts = checkpoints.save(
        net, weights, name=config.name, function=config.function, family=config.family, dtype=torch.float16
    )
    stored = checkpoints.build(*checkpoints.parse(weights.read_bytes(), config.name), config.name)
    measured = measure(stored, config, count)
    domain = DOMAINS[config.data[0]["distribution"]]
    entry = {
        "name": config.name,
        "function": config.function,
        "family": config.family,
        "dtype": "float32",
        "domain": {"n": [min(config.sizes), max(config.sizes)], "complex": False, **domain},
        "bound": max(bounds["0.99"] for bounds in measured["conformal_by_size"].values()),
        "bound_kind": "statistical",
        **facts,
        "repo": "",
        "revision": "",
        "trained_by": f"python -m neural_expm.training fit --recipe {config.name} && "
        f"python -m neural_expm.training ship runs/{config.name}",
        "license": "Apache-2.0",
        "measured": measured,
        "card": card(config, measured),
    }
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = [other for other in content["checkpoints"] if other["name"] != config.name]
    write_json(path, {**content, "checkpoints": [*kept, entry]})
    return entry


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m neural_expm.training ship", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a finished run, such as runs/NAME")
    parser.add_argument("--count", type=int, default=COUNT, help="matrices of each size")
    options = parser.parse_args(argv)
    entry = ship(options.folder, options.count)
    print(json.dumps(entry, indent=1, ensure_ascii=False))
    return 0
