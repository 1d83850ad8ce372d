"""The configuration of every encoder–decoder checkpoint that ships: ``fit --recipe NAME`` makes it again."""

from __future__ import annotations

import copy
from typing import Any

from neural_expm.errors import TrainingError
from neural_expm.training.baseline import fit_polynomial
from neural_expm.training.config import RunConfig

#: Row-and-column tokens: n of them, so that a step at n = 8 costs a tenth of what entry tokens cost.
_NETWORK = {
    "encoding": "block",
    "width": 96,
    "heads": 4,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "hidden": 384,
}

#: A frame with "powers" but no coefficients gets them by least squares on the first entry of "data".
RECIPES: dict[str, dict[str, Any]] = {
    "expm-transformer-block": {
        "function": "expm",
        "network": {**_NETWORK, "frame": {"kind": "expm", "squarings": 1, "degree": 2}},
        "data": [
            {"distribution": "ginibre", "weight": 0.75},
            {"distribution": "gaussian_symmetric", "radius": 2.0, "weight": 0.25},
        ],
        "batch": 128,
        "steps": 6000,
        "learning_rate": 1.5e-3,
        "warmup": 150,
    },
    "sign-transformer-symmetric": {
        "function": "sign",
        "network": {
            **_NETWORK,
            "frame": {"kind": "sign", "powers": [1, 3], "steps": [0.5, 0.5], "symmetric": True},
        },
        "data": [{"distribution": "sign_symmetric", "gap": 0.2}],
        "batch": 128,
        "steps": 1500,
        "learning_rate": 1.5e-3,
        "warmup": 150,
        "raw_weight": 0.1,
    },
    "sign-transformer-general": {
        "function": "sign",
        "network": {
            **_NETWORK,
            "frame": {
                "kind": "sign",
                "powers": [1],
                "coefficients": [1.25],
                "rational": True,
                "scale": 0.15,
                "steps": [0.5],
            },
        },
        "data": [{"distribution": "sign_general", "gap": 0.2, "condition": 5.0}],
        "batch": 128,
        "steps": 3000,
        "learning_rate": 1.5e-3,
        "warmup": 150,
        "raw_weight": 0.3,
    },
    "sqrtm-transformer-block": {
        "function": "sqrtm",
        "network": {
            **_NETWORK,
            "frame": {"kind": "sqrtm", "powers": [0, 1, 2], "steps": [0.6, 1.2], "symmetric": True},
        },
        "data": [{"distribution": "spd", "condition": 100.0}],
        "batch": 128,
        "steps": 2500,
        "learning_rate": 1.5e-3,
        "warmup": 150,
        "raw_weight": 0.1,
    },
}


def recipe(name: str) -> RunConfig:
    """Return the run called ``name``; TrainingError lists those that exist."""
    if name not in RECIPES:
        raise TrainingError(f"unknown recipe {name!r}; use one of {', '.join(RECIPES)}")
    config = RunConfig.from_dict({"name": name, **copy.deepcopy(RECIPES[name])})
    frame = config.network["frame"]
    if "powers" in frame and "coefficients" not in frame:
        fitted = fit_polynomial(config.function, config.data[0], frame["powers"], config.sizes)
        frame["coefficients"], frame["scale"] = fitted
    return config
