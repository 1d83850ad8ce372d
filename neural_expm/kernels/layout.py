"""How a chunk of matrices lies in memory: one matrix after another, or one entry of all matrices after another.

Small matrices lie batch-last, (n, n, batch): a matrix product is then n fused multiply-adds over long contiguous rows
instead of one tiny GEMM a matrix.  Both layouts have the same face, so that a kernel is written once.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Largest n whose products are faster batch-last, and the smallest batch where the change of layout pays.
BATCH_LAST_N = 5
BATCH_LAST_COUNT = 256
# Bytes of one token of a chunk: a few tokens together stay in the cache, and torch's calls cost little beside it.
CHUNK_BYTES = 1 << 20


class BatchFirst:
    """Matrices as (count, n, n): products are batched GEMMs."""

    dims = (-2, -1)

    @staticmethod
    def empty(lead: tuple[int, ...], count: int, A: Tensor) -> Tensor:
        """Uninitialised (*lead, count, n, n) of the dtype and device of A, which is (…, n, n)."""
        return A.new_empty((*lead, count, A.shape[-1], A.shape[-1]))

    @staticmethod
    def load(A: Tensor, out: Tensor, scale: float | Tensor) -> None:
        """Out ← scale · A, from (count, n, n) into the layout; a tensor scales each matrix by its own number."""
        torch.mul(A, scale[:, None, None] if isinstance(scale, Tensor) else scale, out=out)

    @staticmethod
    def matrices(X: Tensor) -> Tensor:
        """A view as (…, count, n, n)."""
        return X

    @staticmethod
    def multiply(X: Tensor, Y: Tensor, out: Tensor) -> None:
        """Out ← X Y."""
        torch.bmm(X, Y, out=out)

    @staticmethod
    def multiply_add(X: Tensor, Y: Tensor, out: Tensor, beta: float = 1.0, alpha: float = 1.0) -> None:
        """Out ← beta · out + alpha · X Y."""
        torch.baddbmm(out, X, Y, beta=beta, alpha=alpha, out=out)

    @staticmethod
    def add_identity(X: Tensor, weight: float) -> None:
        """X ← X + weight · I."""
        X.diagonal(dim1=-2, dim2=-1).add_(weight)


class BatchLast:
    """Matrices as (n, n, count): products are broadcasts over long rows."""

    dims = (0, 1)

    @staticmethod
    def empty(lead: tuple[int, ...], count: int, A: Tensor) -> Tensor:
        """Uninitialised (*lead, n, n, count)."""
        return A.new_empty((*lead, A.shape[-1], A.shape[-1], count))

    @staticmethod
    def load(A: Tensor, out: Tensor, scale: float | Tensor) -> None:
        """Out ← scale · A, from (count, n, n)."""
        torch.mul(A.permute(1, 2, 0), scale, out=out)

    @staticmethod
    def matrices(X: Tensor) -> Tensor:
        """A view as (count, n, n)."""
        return X.permute(2, 0, 1)

    @staticmethod
    def multiply(X: Tensor, Y: Tensor, out: Tensor) -> None:
        """Out ← X Y."""
        (column, row), *rest = BatchLast._outer(X, Y)
        torch.mul(column, row, out=out)
        for column, row in rest:
            out.addcmul_(column, row)

    @staticmethod
    def multiply_add(X: Tensor, Y: Tensor, out: Tensor, beta: float = 1.0, alpha: float = 1.0) -> None:
        """Out ← beta · out + alpha · X Y."""
        if beta != 1.0:
            out.mul_(beta)
        for column, row in BatchLast._outer(X, Y):
            out.addcmul_(column, row, value=alpha)

    @staticmethod
    def _outer(X: Tensor, Y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Columns of X and rows of Y that broadcast to rank-one terms; unbinding is cheaper than indexing."""
        return list(zip(X.unsqueeze(2).unbind(1), Y.unsqueeze(0).unbind(1), strict=True))

    @staticmethod
    def add_identity(X: Tensor, weight: float) -> None:
        """X ← X + weight · I."""
        X.diagonal(dim1=0, dim2=1).add_(weight)


Layout = type[BatchFirst] | type[BatchLast]


def layout_for(n: int, count: int) -> Layout:
    """The faster layout for this size and number of matrices."""
    return BatchLast if n <= BATCH_LAST_N and count >= BATCH_LAST_COUNT else BatchFirst


def chunk_length(A: Tensor, count: int) -> int:
    """Matrices in a chunk: even parts of at most CHUNK_BYTES each."""
    most = max(1, CHUNK_BYTES // (A.shape[-1] ** 2 * A.element_size()))
    parts = -(-count // most)
    return -(-count // parts) if count else 1


def multiply_dual(layout: Layout, *operands: Tensor) -> None:
    """(X + ε dX)(Y + ε dY) = XY + ε (dX Y + X dY), into out[0] and out[1]; operands X, dX, Y, dY, out."""
    X, dX, Y, dY, out = operands
    layout.multiply(X, Y, out[0])
    layout.multiply(dX, Y, out[1])
    layout.multiply_add(X, dY, out[1])
