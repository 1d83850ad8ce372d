"""One dataclass a training run: everything that decides which weights come out, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neural_expm.errors import TrainingError


@dataclass(frozen=True)
class RunConfig:
    """A run is a function of this configuration: the same machine and values give the same weights.

    ``data`` is a list of {"distribution": …, "weight": …, parameters of the distribution}; each step draws
    one entry and one size. ``batch`` counts matrices a step over all processes.
    """

    name: str
    function: str  # "expm", "sign" or "sqrtm"
    network: dict[str, Any]
    data: list[dict[str, Any]]
    family: str = "transformer"
    sizes: list[int] = field(default_factory=lambda: [2, 3, 4, 5, 6, 7, 8])
    size_power: float = 1.0  # a size n is drawn with weight n**size_power: large n is harder
    batch: int = 256
    steps: int = 2000
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.995
    seed: int = 0
    loss: str = (
        "log1p"  # mean of log(1 + error), calm where the error is large; or "mean" of the error itself
    )
    raw_weight: float = 0.0  # weight of the same loss before the last products, where the frame has any
    precision: str = "float32"  # or "bfloat16": forward under autocast, weights and loss in float32
    validate_every: int = 500
    validate_count: int = 512
    save_every: int = 250

    def __post_init__(self) -> None:
        positive = ("batch", "steps", "learning_rate", "validate_every", "validate_count", "save_every")
        for key in positive:
            if getattr(self, key) <= 0:
                raise TrainingError(f"{self.name}: {key} = {getattr(self, key)} must be positive")
        if self.loss not in ("log1p", "mean"):
            raise TrainingError(f"{self.name}: loss {self.loss!r}; use 'log1p' or 'mean'")
        if self.precision not in ("float32", "bfloat16"):
            raise TrainingError(f"{self.name}: precision {self.precision!r}; use 'float32' or 'bfloat16'")
        if not 0 <= self.ema < 1:
            raise TrainingError(f"{self.name}: ema = {self.ema} must lie in [0, 1)")
        if not self.sizes or min(self.sizes) < 1:
            raise TrainingError(f"{self.name}: sizes = {self.sizes} must be a list of positive integers")
        if not self.data:
            raise TrainingError(f"{self.name}: data is empty; name at least one distribution")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Build from a plain dictionary; an unknown or missing key is a TrainingError that names it."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise TrainingError(
                f"unknown key(s) {', '.join(unknown)}; known keys: {', '.join(sorted(known))}"
            )
        required = {f.name for f in dataclasses.fields(cls) if _required(f)}
        if missing := sorted(required - set(values)):
            raise TrainingError(f"missing key(s) {', '.join(missing)}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> RunConfig:
        """Read a JSON file; TrainingError if it is absent or is not a JSON object."""
        try:
            values = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise TrainingError(f"cannot read the configuration {path}: {error}") from error
        if not isinstance(values, dict):
            raise TrainingError(f"{path}: expected a JSON object, found {type(values).__name__}")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
