"""One table of matrices and one of tolerances, shared by all tests."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import torch
from torch import Tensor

import neural_expm
from neural_expm.bench.suite import value_and_gradient

# Relative Frobenius error allowed for a value, by dtype.  float32: a dozen roundings of 6e-8; float64: the same of
# 1.1e-16, and mpmath as truth; half precisions: one rounding of the correct answer.
VALUE = {
    torch.float32: 1e-6,
    torch.complex64: 1e-6,
    torch.float64: 3e-15,
    torch.complex128: 3e-15,
}
# One rounding to the dtype: half a unit in the last place, and a hair for the value being rounded from float32.
ONE_ROUNDING = {torch.float16: 2.0**-11 * 1.01, torch.bfloat16: 2.0**-8 * 1.01}
GRADIENT = {torch.float32: 1e-5, torch.float64: 1e-13}
SIGN = {torch.float32: 1e-5, torch.float64: 1e-12}


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def both(A: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """e^A, and the gradient for the cotangent G."""
    return value_and_gradient(neural_expm.expm, A.clone().requires_grad_(), G)


def ginibre(
    n: int, count: int, radius: float = 2.0, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Gaussian matrices scaled to a spectral norm uniform in (0, radius]."""
    g = generator(seed)
    A = torch.randn(count, n, n, dtype=dtype, generator=g)
    norm = torch.linalg.matrix_norm(A, 2)[:, None, None]
    return A / norm * radius * torch.rand(count, 1, 1, dtype=norm.dtype, generator=g)


def with_roots(n: int, count: int, condition: float) -> tuple[Tensor, Tensor]:
    """Positive definite float64 matrices of norm 1 and a condition number, and their square roots."""
    Q = torch.linalg.qr(ginibre(n, count, seed=n))[0]
    roots = torch.logspace(-0.5 * math.log10(condition), 0, n, dtype=torch.float64)
    A, R = (Q * roots**2 @ Q.mT, Q * roots @ Q.mT)
    return (A + A.mT) / 2, R


def adversarial(n: int = 4) -> dict[str, Tensor]:
    """Named float64 matrices on which careless algorithms fail."""
    shift = torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
    return {
        "zero": torch.zeros(n, n, dtype=torch.float64),
        "identity": torch.eye(n, dtype=torch.float64),
        "jordan": 0.5 * torch.eye(n, dtype=torch.float64) + shift,
        "nilpotent, large": 50.0 * shift,
        "rotation": 3.0 * (shift - shift.T),
        "negative definite": -20.0 * torch.eye(n, dtype=torch.float64) + shift,
        "badly scaled": torch.tensor(np.diag([1e-8, 1.0, 1e-3, 5.0])[:n, :n]) + 1e-6 * shift,
        "rank one": torch.ones(n, n, dtype=torch.float64),
        "generator": torch.ones(n, n, dtype=torch.float64) - n * torch.eye(n, dtype=torch.float64),
        "tiny": 1e-12 * (shift + shift.T),
        "norm 100": 100.0 * shift.T + 5.0 * shift,
    }


def mp_expm(A: Tensor, digits: int = 50) -> Tensor:
    """The exponential by mpmath at 50 digits, rounded to the dtype of A (float64 or complex128)."""
    with mpmath.workdps(digits):
        exact = mpmath.expm(mpmath.matrix(A.tolist()), method="taylor")
        rows = [[complex(exact[i, j]) for j in range(A.shape[1])] for i in range(A.shape[0])]
    result = torch.tensor(rows, dtype=torch.complex128)
    return result if A.is_complex() else result.real


def relative(X: Tensor, truth: Tensor) -> Tensor:
    """Relative Frobenius error of each matrix, in double precision."""
    wide = torch.complex128 if truth.is_complex() else torch.float64
    X, truth = X.to(wide), truth.to(wide)
    return torch.linalg.matrix_norm(X - truth) / torch.linalg.matrix_norm(truth)
