"""Train and measure one compact ReLU network: the same `ReLURun` and machine give the same weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from ..networks.relu import TrainedReLUNet
from .conformal import conformal_bound, covered
from .data import sample_pairs, split_generator
from .metrics import relative_error, summary

HIDDEN_LAYERS = 3
MEASURED = 20_000
COVERAGE = 0.99
# Fresh pairs are drawn this many steps at a time: one large batch is cheaper than many small ones.
STEPS_A_DRAW = 64
DISTRIBUTIONS: dict[str, tuple[str, dict[str, float]]] = {
    "expm": ("ginibre", {"radius": 2.0}),
    "sqrtm": ("spd", {"condition": 100.0}),
}


@dataclass(frozen=True)
class ReLURun:
    """Everything that decides which weights come out."""

    function: str
    n: int
    budget: int  # weights and biases, at most
    squarings: int
    baseline: int
    steps: int
    batch: int = 512
    learning_rate: float = 3e-3
    warmup: int = 100
    seed: int = 0

    def network(self) -> TrainedReLUNet:
        """The network with its initial weights: three hidden layers, as wide as the budget allows.

        Raises:
            TrainingError: not even one neuron a layer fits.
        """
        entries = self.n**2 if self.function == "expm" else self.n * (self.n + 1) // 2

        def parameters(width: int) -> int:
            return (HIDDEN_LAYERS - 1) * width * (width + 1) + width * (entries + 1) + entries * (width + 1)

        if parameters(1) > self.budget:
            raise TrainingError(f"a budget of {self.budget} parameters: the smallest has {parameters(1)}")
        width = max(w for w in range(1, math.isqrt(self.budget) + 1) if parameters(w) <= self.budget)
        torch.manual_seed(self.seed)
        return TrainedReLUNet(self.function, self.n, [width] * HIDDEN_LAYERS, self.squarings, self.baseline)


def fit(run: ReLURun) -> TrainedReLUNet:
    """Minimise the mean relative Frobenius error with Adam and a cosine schedule.

    Raises:
        TrainingError: the loss is not finite.
    """
    network = run.network()
    optimizer = torch.optim.Adam(network.parameters(), lr=run.learning_rate, fused=True)
    for step in range(run.steps):
        if step % STEPS_A_DRAW == 0:
            inputs, targets = _pairs(run, "train", STEPS_A_DRAW * run.batch, step)
        rows = slice(step % STEPS_A_DRAW * run.batch, (step % STEPS_A_DRAW + 1) * run.batch)
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * _schedule(step, run)
        loss = relative_error(network(inputs[rows]), targets[rows]).mean()
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss of {run} is {loss.item()} at step {step}: lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def _schedule(step: int, run: ReLURun) -> float:
    return min(1.0, (step + 1) / run.warmup) * 0.5 * (1 + math.cos(math.pi * step / run.steps))


def _pairs(run: ReLURun, split: str, count: int, index: int = 0) -> tuple[Tensor, Tensor]:
    name, parameters = DISTRIBUTIONS[run.function]
    generator = split_generator(split, run.seed, index)
    inputs, targets = sample_pairs(run.function, name, run.n, count, generator, **parameters)
    return inputs.float(), targets.float()


@torch.no_grad()
def measure(run: ReLURun, network: TrainedReLUNet) -> dict[str, Any]:
    """Figures on held-out matrices: the network, its int8 version, the frame with the network at zero."""
    inputs, targets = _pairs(run, "test", MEASURED)
    calibration = relative_error(*_answers(network, *_pairs(run, "calibration", MEASURED)))
    bound = conformal_bound(calibration, COVERAGE)
    errors = relative_error(*_answers(network, inputs, targets))
    name, parameters = DISTRIBUTIONS[run.function]
    return {
        "distribution": {"distribution": name, **parameters},
        "samples": MEASURED,
        "calibration_samples": MEASURED,
        "seed": run.seed,
        "parameters": network.parameter_count,
        "relative_error": summary(errors),
        "int8": summary(relative_error(*_answers(network.quantized(), inputs, targets))),
        "frame_alone": summary(relative_error(*_answers(_silenced(network), inputs, targets))),
        "conformal": {str(COVERAGE): bound},
        "coverage": {str(COVERAGE): covered(errors, bound)},
    }


def _answers(network: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return network(inputs), targets


def _silenced(network: TrainedReLUNet) -> TrainedReLUNet:
    """The frame alone: the same module with a network that answers zero."""
    silent = TrainedReLUNet.from_config(network.config)
    for parameter in silent.parameters():
        nn.init.zeros_(parameter)
    return silent.eval().requires_grad_(False)
