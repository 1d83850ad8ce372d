"""Odd compositions for sign and their coupled form for the square root, on one chunk.

A stage is p(x) = x h(x²) with h(w) = a + bw + cw².  For sign X ← X h(X²).  For the square root p is applied to
[[0, Y], [Z, 0]], which stays of that form: with W = ZY, Y ← Y h(W), Z ← h(W) Z (Higham, *Functions of Matrices*,
section 6.3), so the 2n × 2n matrix is never made.

Everything is written once for values and for value–derivative pairs: a pair has a leading dimension of two, sums act on
it as they stand, and only products and the identity know of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .layout import Layout, multiply_dual

Stage = tuple[float, float, float]
# Extra squarings of X² before a spectral radius is called too large: ‖X^{2k}‖^{1/2k} falls towards it.
SHARPER = 3


class Algebra:
    """Products of matrices, or of pairs (X, dX), in a layout.

    Results live in buffers that :meth:`release` takes back for the next ones: fresh memory costs more than a product
    of small matrices.
    """

    def __init__(self, layout: Layout, dual: bool) -> None:
        self.layout, self.dual = layout, dual
        self._free: list[Tensor] = []
        self._largest = 0

    def value(self, X: Tensor) -> Tensor:
        """The matrix part."""
        return X[0] if self.dual else X

    def like(self, X: Tensor, count: int | None = None) -> Tensor:
        """Uninitialised, of the shape of X, or with another number of matrices."""
        shape = list(X.shape)
        if count is not None:
            shape[self.axis] = count
        size = math.prod(shape)
        self._largest = max(self._largest, size)
        while self._free:
            buffer = self._free.pop()
            if buffer.numel() >= size:
                return buffer[:size].view(shape)
        # As large as any so far, so that it serves again however many matrices are left.
        return X.new_empty(self._largest)[:size].view(shape)

    def release(self, *used: Tensor) -> None:
        """Take back what :meth:`like` gave."""
        self._free.extend((X if X._base is None else X._base).view(-1) for X in used)

    @property
    def axis(self) -> int:
        """The dimension that counts matrices."""
        return -1 if self.layout.dims == (0, 1) else -3

    def select(self, X: Tensor, rows: Tensor) -> Tensor:
        """Some of the matrices, new."""
        return torch.index_select(X, self.axis, rows, out=self.like(X, rows.numel()))

    def multiply(self, X: Tensor, Y: Tensor) -> Tensor:
        """X Y, new."""
        out = self.like(X)
        if self.dual:
            multiply_dual(self.layout, X, Y, out)
        else:
            self.layout.multiply(X, Y, out)
        return out

    def polynomial(self, W: Tensor, square: Tensor, stage: Stage) -> Tensor:
        """h(W) = aI + bW + cW², in place of ``square`` = W²."""
        a, b, c = stage
        square.mul_(c).add_(W, alpha=b)
        self.layout.add_identity(self.value(square), a)
        return square

    def norms(self, X: Tensor) -> Tensor:
        """‖·‖_F of each matrix."""
        return torch.linalg.vector_norm(self.value(X), dim=self.layout.dims)

    def distance(self, X: Tensor) -> Tensor:
        """‖X − I‖_F of each matrix."""
        difference = self.like(X).copy_(X)
        self.layout.add_identity(self.value(difference), -1.0)
        result = self.norms(difference)
        self.release(difference)
        return result

    def beyond(self, W: Tensor, square: Tensor, radius: float) -> Tensor | None:
        """The matrices whose spectral radius of W = X² is not provably at most radius²; None if it is soon clear that
        there are none.

        By ‖W²‖^{1/2}, never more than ‖W‖; for those that it leaves open by 1 + ‖W − I‖ and by ‖W^{2^k}‖^{1/2^k}.

        Args:
            square: W².
        """
        limit = radius * radius
        good = self.norms(square) <= limit**2
        if bool(good.all()):
            return None
        rows = torch.nonzero(~good)[:, 0]
        chosen = self.select(W, rows)
        good = 1.0 + self.distance(chosen) <= limit
        self.release(chosen)
        if bool(good.all()):
            return None
        power = self.select(square, rows)
        for k in range(2, SHARPER + 1):
            lower, power = power, self.multiply(power, power)
            self.release(lower)
            good |= self.norms(power) <= limit ** (2**k)
        self.release(power)
        return rows[~good]


def sign_stage(algebra: Algebra, X: Tensor, W: Tensor, square: Tensor, stage: Stage) -> Tensor:
    """X h(W) with W = X² and ``square`` = W²; the arguments are used up."""
    h = algebra.polynomial(W, square, stage)
    result = algebra.multiply(X, h)
    algebra.release(X, W, h)
    return result


def tangent(algebra: Algebra, pair: Tensor) -> None:
    """The derivative dS beside a sign S ← ½(dS − S dS S), which is what S dS + dS S = 0, for S² = I, leaves of it.

    What it removes is zero but for rounding, which eigenvalues near the axis would enlarge by one over their distance.
    """
    (S, slope), layout = pair, algebra.layout
    left, both = algebra.like(S), algebra.like(S)
    layout.multiply(S, slope, left)
    layout.multiply(left, S, both)
    slope.sub_(both).mul_(0.5)
    algebra.release(left, both)


def root_stage(
    algebra: Algebra, Y: Tensor, Z: Tensor, W: Tensor, square: Tensor, stage: Stage
) -> tuple[Tensor, Tensor]:
    """The coupled form of :func:`sign_stage`, W = ZY: Y → A^{1/2}, Z → A^{−1/2}."""
    h = algebra.polynomial(W, square, stage)
    result = algebra.multiply(Y, h), algebra.multiply(h, Z)
    algebra.release(Y, Z, W, h)
    return result
