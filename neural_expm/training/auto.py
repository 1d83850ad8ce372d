"""``"encoding": "auto"``: race the encodings on a share of the steps each, then train the winner.

The race is decided by the validation error, with the run's own seed, so it ends the same way every time; it is
written to ``auto.json`` in the run's folder and not run again on ``--resume``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from neural_expm.errors import TrainingError
from neural_expm.networks.encodings import ENCODINGS
from neural_expm.training.config import RunConfig
from neural_expm.training.files import write_json
from neural_expm.training.fit import Run

#: Share of the steps that each encoding gets.
SHARE = 0.1


def with_encoding(config: RunConfig, encoding: str, steps: int) -> RunConfig:
    """Return the run with this encoding and number of steps."""
    return dataclasses.replace(config, network={**config.network, "encoding": encoding}, steps=steps)


def race(config: RunConfig, folder: Path) -> dict[str, float]:
    """Return the mean validation error of each encoding after its share of the steps."""
    errors = {}
    for encoding in ENCODINGS:
        run = Run(with_encoding(config, encoding, max(1, round(SHARE * config.steps))), folder)
        while run.step < run.config.steps:
            run.advance()
        errors[encoding] = run.validate()["mean"]
    return errors


def resolve(config: RunConfig, folder: Path) -> RunConfig:
    """Return ``config`` with the encoding that wins the race, and the steps that the race has left.

    Raises :class:`TrainingError` if ``auto.json`` in ``folder`` is damaged.
    """
    path = folder / "auto.json"
    if path.exists():
        try:
            chosen = json.loads(path.read_text(encoding="utf-8"))["chosen"]
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{path} does not say which encoding won: {error!r}; delete it") from error
    else:
        errors = race(config, folder)
        chosen = min(errors, key=lambda encoding: errors[encoding])
        write_json(path, {"chosen": chosen, "mean_error": errors, "share": SHARE})
    left = config.steps - len(ENCODINGS) * max(1, round(SHARE * config.steps))
    return with_encoding(config, chosen, max(1, left))
