"""Odd compositions for sign and their coupled form for the square root, on one chunk.

A stage is p(x) = x h(x²) with h(w) = a + bw + cw².  For sign X ← X h(X²).  For the square root p is applied to
[[0, Y], [Z, 0]], which stays of that form: with W = ZY, Y ← Y h(W), Z ← h(W) Z (Higham, *Functions of Matrices*,
section 6.3), so the 2n × 2n matrix is never made.

Everything is written once for values and for value–derivative pairs: a pair has a leading dimension of two, sums act on
it as they stand, and only products and the identity know of it.
"""

from __future__ import annotations

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

    def polynomial(self, W: Tensor, stage: Stage) -> Tensor:
        """h(W) = aI + bW + cW², new."""
        a, b, c = stage
        out, value = W.clone(), self.value(W)
        self.layout.multiply_add(value, value, self.value(out), beta=b, alpha=c)
        if self.dual:
            self.layout.multiply_add(W[1], value, out[1], beta=b, alpha=c)
            self.layout.multiply_add(value, W[1], out[1], alpha=c)
        self.layout.add_identity(self.value(out), a)
        return out

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
        limit, size = radius * radius, W.shape[self.layout.dims[0]]
        whole = self.norms(W).square()
        trace = self.layout.matrices(self.value(W)).diagonal(dim1=-2, dim2=-1).sum(-1).real
        # ‖W − I‖² = ‖W‖² − 2 Re tr W + n, rounded up: a subtraction of like numbers.
        rounding = 4 * size * torch.finfo(whole.dtype).eps * (whole + size)
        apart = (whole - 2 * trace + size + rounding).clamp_min_(0.0)
        good = torch.minimum(whole.sqrt_(), 1.0 + apart.sqrt_()) <= limit
        rows = torch.nonzero(~good)[:, 0]
        power = self.layout.matrices(self.value(W))[rows]
        for k in range(1, SHARPER + 1):
            if not rows.numel():
                break
            power = power @ power
            saved = torch.linalg.vector_norm(power, dim=(-2, -1)) <= limit ** (2**k)
            good[rows] = saved
            rows, power = rows[~saved], power[~saved]
        return good


def sign_stage(algebra: Algebra, X: Tensor, W: Tensor, stage: Stage) -> Tensor:
    """X h(W) with W = X²."""
    return algebra.multiply(X, algebra.polynomial(W, stage))


def root_stage(algebra: Algebra, Y: Tensor, Z: Tensor, W: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
    """The coupled form of :func:`sign_stage`, W = ZY: Y → A^{1/2}, Z → A^{−1/2}."""
    h = algebra.polynomial(W, stage)
    return algebra.multiply(Y, h), algebra.multiply(h, Z)
