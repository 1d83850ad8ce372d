"""A batch in pieces: the matrices of each chunk, or of some rows of it, and their way out and back."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .layout import chunk_length

WHOLE = slice(None)  # of a batch, of which no view is needed


def chunks(A: Tensor, rows: Tensor | None) -> Iterator[tuple[slice | Tensor, int]]:
    """Indices of the matrices of each chunk, and how many they are."""
    count = A.shape[0] if rows is None else rows.shape[0]
    step = chunk_length(A, count)
    for start in range(0, count, step):
        at = slice(start, min(start + step, count))
        yield (at if rows is None else rows[at]), at.stop - start


def equal_chunks(total: int, count: int, rows: Tensor | None) -> Iterator[slice | Tensor]:
    """Indices of chunks of ``count`` matrices; the last reaches back over some of the one before."""
    if count == total:
        yield WHOLE if rows is None else rows
        return
    for start in range(0, total, count):
        at = slice(min(start, total - count), min(start, total - count) + count)
        yield at if rows is None else rows[at]


def take(A: Tensor, at: slice | Tensor) -> Tensor:
    """The matrices of a chunk, with the strides of a contiguous or transposed A."""
    if isinstance(at, slice):
        return A if at is WHOLE else A[at]
    # Rows that lie in one piece are gathered many times faster than those of a transposed view.
    return A.mT.index_select(0, at).mT if A.stride(-1) != 1 else A.index_select(0, at)


def put(out: Tensor, at: slice | Tensor, X: Tensor) -> None:
    """Write the matrices of a chunk."""
    if isinstance(at, slice):
        out[at].copy_(X)
    else:
        out.index_copy_(0, at, X)
