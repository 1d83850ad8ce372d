"""Errors of a workload, ours and the classical algorithm's, against the truth; and the gate on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import truth
from .workloads import Workload

# Ours may be FACTOR times the classical algorithm's own error, or this much where that is smaller still.
FACTOR = 2.0
VALUE_FLOOR = {
    # A few roundings: below it the two differ by luck.
    "expm": {torch.float32: 5e-7, torch.float64: 1e-15},
    # The promise on sign_symmetric(·, 0.01), whose condition number is 100.
    "sign": {torch.float32: 1e-5, torch.float64: 1e-12},
    "sqrtm": {torch.float32: 1e-5, torch.float64: 1e-12},
}
GRADIENT_FLOOR = {
    "expm": {torch.float32: 1e-5, torch.float64: 1e-13},
    # As the values.
    "sign": {torch.float32: 1e-5, torch.float64: 1e-12},
    # One more power of the condition number.
    "sqrtm": {torch.float32: 1e-3, torch.float64: 1e-10},
}
# A derivative this small beside its cotangent is zero up to the truth's own rounding.
VANISHES = 1e-10


@dataclass(frozen=True)
class Error:
    """Largest relative Frobenius error over ``checked`` matrices, and whether ours passes the gate ``limit``."""

    ours: float
    baseline: float
    limit: float
    checked: int

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.ours <= self.limit


def value_error(workload: Workload, A: Tensor, ours: Tensor, baseline: Tensor) -> Error:
    """Errors of f(A)."""
    rows = truth.sample(_flat(A), gradient=False)
    exact = truth.value(workload.function, _flat(A)[rows])
    return _judge(exact, ours, baseline, rows, VALUE_FLOOR[workload.function])


def gradient_error(workload: Workload, A: Tensor, G: Tensor, ours: Tensor, baseline: Tensor) -> Error:
    """Errors of the gradient of Re⟨G, f(A)⟩."""
    rows = truth.sample(_flat(A), gradient=True)
    exact = truth.gradient(workload.function, _flat(A)[rows], _flat(G)[rows])
    unit = _frobenius(_flat(G)[rows].numpy())
    return _judge(exact, ours, baseline, rows, GRADIENT_FLOOR[workload.function], unit)


def relative_error(exact: np.ndarray, X: Tensor, unit: np.ndarray | None = None) -> float:
    """Largest of the batch: ‖X − exact‖_F / ‖exact‖_F; NaN if any is.

    Where ‖exact‖_F is below VANISHES · unit, the error is relative to ``unit`` instead: the derivative of sign at a
    definite matrix is zero, and no error is small beside that.
    """
    size = _frobenius(exact)
    if unit is not None:
        size = np.where(size > VANISHES * unit, size, unit)
    difference = exact - X.detach().resolve_conj().numpy().astype(exact.dtype)
    return float(np.max(_frobenius(difference) / np.maximum(size, 1e-300)))


def _judge(
    exact: np.ndarray,
    ours: Tensor,
    baseline: Tensor,
    rows: Tensor,
    floor: dict,
    unit: np.ndarray | None = None,
) -> Error:
    errors = [relative_error(exact, _flat(X)[rows], unit) for X in (ours, baseline)]
    limit = max(FACTOR * errors[1], floor[ours.real.dtype if ours.is_complex() else ours.dtype])
    return Error(errors[0], errors[1], limit, len(rows))


def _flat(X: Tensor) -> Tensor:
    return X.reshape(-1, *X.shape[-2:])


def _frobenius(X: np.ndarray) -> np.ndarray:
    return np.sqrt((np.abs(X) ** 2).sum((-2, -1)))
