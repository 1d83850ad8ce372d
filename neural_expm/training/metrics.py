"""The two metrics of the project: relative Frobenius error, and d1 of Charton 2022."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_error(output: Tensor, reference: Tensor) -> Tensor:
    """Return ‖output − reference‖_F / ‖reference‖_F for each of (B, n, n) matrices."""
    return (output - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)


def d1_error(output: Tensor, reference: Tensor) -> Tensor:
    """Return Σ|ŷ − y| / Σ|y| for each of (B, n, n) matrices."""
    return (output - reference).abs().sum((-2, -1)) / reference.abs().sum((-2, -1))


def summary(errors: Tensor) -> dict[str, float]:
    """Return mean, median, p95 and max; an error that is not finite counts as infinite."""
    errors = torch.where(errors.isfinite(), errors, torch.full_like(errors, torch.inf)).double()
    ordered = errors.sort().values

    def at(q: float) -> float:
        return float(ordered[min(len(ordered) - 1, int(q * len(ordered)))])

    return {"mean": float(errors.mean()), "median": at(0.5), "p95": at(0.95), "max": float(ordered[-1])}
