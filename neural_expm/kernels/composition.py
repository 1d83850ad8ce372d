"""Odd compositions for sign and their coupled form for the square root, on one chunk.

A stage is p(x) = ax + bx³ + cx⁵.  For sign X ← p(X).  For the square root p(x) = x h(x²) is applied to
[[0, Y], [Z, 0]], which stays of that form: with W = ZY, Y ← Y h(W), Z ← h(W) Z (Higham, *Functions of Matrices*,
section 6.3), so the 2n × 2n matrix is never made.

Everything is written once for values and for value–derivative pairs: a pair has a leading dimension of two, sums act on
it as they stand, and only products and the identity know of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import Layout, multiply_dual

Stage = tuple[float, float, float]
# Extra squarings of X² before a spectral radius is called too large: ‖X^{2k}‖^{1/2k} falls towards it.
SHARPER = 3


class Algebra:
    """Products of matrices, or of pairs (X, dX), in a layout."""

    def __init__(self, layout: Layout, dual: bool) -> None:
        self.layout, self.dual = layout, dual

    def value(self, X: Tensor) -> Tensor:
        """The matrix part."""
        return X[0] if self.dual else X

    def multiply(self, X: Tensor, Y: Tensor) -> Tensor:
        """X Y, new."""
        out = torch.empty_like(X)
        if self.dual:
            multiply_dual(self.layout, X, Y, out)
        else:
            self.layout.multiply(X, Y, out)
        return out

    def add_product(self, total: Tensor, X: Tensor, Y: Tensor, alpha: float) -> Tensor:
        """Total + alpha X Y, in place."""
        self.layout.multiply_add(self.value(X), self.value(Y), self.value(total), alpha=alpha)
        if self.dual:
            self.layout.multiply_add(X[1], Y[0], total[1], alpha=alpha)
            self.layout.multiply_add(X[0], Y[1], total[1], alpha=alpha)
        return total

    def norms(self, X: Tensor) -> Tensor:
        """‖·‖_F of each matrix."""
        return torch.linalg.vector_norm(self.value(X), dim=self.layout.dims)

    def distance(self, X: Tensor) -> Tensor:
        """‖X − I‖_F of each matrix."""
        difference = self.value(X).clone()
        self.layout.add_identity(difference, -1.0)
        return torch.linalg.vector_norm(difference, dim=self.layout.dims)

    def within(self, W: Tensor, radius: float) -> Tensor:
        """Whether the spectral radius of W = X² is provably at most radius².

        By ‖W‖, by 1 + ‖W − I‖, and for the few matrices that these leave open by ‖W^{2^k}‖^{1/2^k}.
        """
        limit = radius * radius
        good = torch.minimum(self.norms(W), 1.0 + self.distance(W)) <= limit
        if bool(good.all()):
            return good
        rows = torch.nonzero(~good)[:, 0]
        power = self.layout.matrices(self.value(W))[rows]
        for k in range(1, SHARPER + 1):
            power = power @ power
            good[rows] |= torch.linalg.vector_norm(power, dim=(-2, -1)) <= limit ** (2**k)
        return good


def sign_pass(
    algebra: Algebra, X: Tensor, stages: Sequence[Stage], radii: Sequence[float] | None
) -> tuple[Tensor, Tensor | None]:
    """One pass through all stages.

    Args:
        X: chunk in the layout.
        radii: R_t of each stage; None where the spectrum is known to be real and in the stages' intervals.

    Returns:
        The new X, and which matrices kept every R_t (None without ``radii``).
    """
    kept = None
    for t, (a, b, c) in enumerate(stages):
        W = algebra.multiply(X, X)
        if radii is not None:
            good = algebra.within(W, radii[t])
            kept = good if kept is None else kept & good
        cube = algebra.multiply(X, W)
        X = algebra.add_product(X.mul_(a).add_(cube, alpha=b), W, cube, c)
    return X, kept


def sqrt_pass(
    algebra: Algebra, Y: Tensor, Z: Tensor, stages: Sequence[Stage], radii: Sequence[float] | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The coupled form of :func:`sign_pass`: Y → A^{1/2}, Z → A^{−1/2}."""
    kept = None
    for t, (a, b, c) in enumerate(stages):
        W = algebra.multiply(Z, Y)
        if radii is not None:
            good = algebra.within(W, radii[t])
            kept = good if kept is None else kept & good
        h = algebra.add_product(W * b, W, W, c)
        algebra.layout.add_identity(algebra.value(h), a)
        Y, Z = algebra.multiply(Y, h), algebra.multiply(h, Z)
    return Y, Z, kept
