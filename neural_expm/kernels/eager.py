"""The same polynomials as ``reference``, without a compiler: preallocated, in place, in chunks that fit the cache.

The residual stream of a chunk is one contiguous array, so that scores and values of a head are a single (2 × h) by
(h × entries) product and a layer costs two torch calls.

The derivative is the Fréchet derivative L(A, E), carried beside the value through the same products
(dX = dQ V + Q dV).  The adjoint of a matrix function needs nothing else: its vector–Jacobian product is L(Aᴴ, G)
(Higham, *Functions of Matrices*, section 3.2).  Memory is one chunk, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .layout import chunk_length, layout_for, multiply_dual


def _rows(X: Tensor) -> Tensor:
    """The tokens as rows of a real matrix, without a copy."""
    return (torch.view_as_real(X) if X.is_complex() else X).view(X.shape[0], -1)


def chunks(A: Tensor, rows: Tensor | None) -> Iterator[tuple[slice | Tensor, int]]:
    """Indices of the matrices of each chunk, and how many they are."""
    count = A.shape[0] if rows is None else rows.shape[0]
    step = chunk_length(A, count)
    for start in range(0, count, step):
        at = slice(start, min(start + step, count))
        yield (at if rows is None else rows[at]), at.stop - start


def take(A: Tensor, at: slice | Tensor) -> Tensor:
    """The matrices of a chunk."""
    return A[at] if isinstance(at, slice) else A.index_select(0, at)


def put(out: Tensor, at: slice | Tensor, X: Tensor) -> None:
    """Write the matrices of a chunk."""
    if isinstance(at, slice):
        out[at].copy_(X)
    else:
        out.index_copy_(0, at, X)


def exponential(
    A: Tensor,
    weights: list[Tensor],
    identity: float,
    squarings: int,
    out: Tensor,
    rows: Tensor | None = None,
    squares: Tensor | None = None,
) -> None:
    """out[rows] = p(A[rows]/2^s)^(2^s).

    Args:
        A, out: shape (batch, n, n), same dtype and device; ``out`` contiguous.
        weights, identity: of ``EquivariantTransformer.packed`` in the real dtype of A.
        squarings: s.
        rows: int64 indices of the matrices to compute; None for all.
        squares: A², shape (batch, n, n), where it is already known.
    """
    layout = layout_for(A.shape[-1], A.shape[0] if rows is None else rows.shape[0])
    stream = pair = A.new_empty(0)
    length = 0
    for at, count in chunks(A, rows):
        if count != length:
            stream, pair = layout.empty((len(weights) + 1,), count, A), layout.empty((2,), count, A)
            length = count
        layout.load(take(A, at), stream[0], 2.0**-squarings)
        flat, pair_flat = _rows(stream), _rows(pair)
        if squares is None:
            layout.multiply(stream[0], stream[0], stream[1])
        else:
            layout.load(take(squares, at), stream[1], 4.0**-squarings)
        for h, head in enumerate(weights[:-1], start=2):
            torch.mm(head, flat[:h], out=pair_flat)
            layout.multiply(pair[0], pair[1], stream[h])
        torch.mm(weights[-1], flat, out=pair_flat[:1])
        X, spare = pair[0], pair[1]
        layout.add_identity(X, identity)
        for _ in range(squarings):
            layout.multiply(X, X, spare)
            X, spare = spare, X
        put(out, at, layout.matrices(X))


def exponential_frechet(
    A: Tensor,
    E: Tensor,
    weights: list[Tensor],
    identity: float,
    squarings: int,
    out: Tensor,
    rows: Tensor | None = None,
) -> None:
    """out[rows] = L(A[rows], E[rows]), the Fréchet derivative of :func:`exponential` in direction E.

    Args:
        A, E, out: shape (batch, n, n), same dtype and device; ``out`` contiguous.
        weights, identity, squarings, rows: as in :func:`exponential`.

    Source: Higham, *Functions of Matrices*, section 3.2; Al-Mohy & Higham (2009), SIAM J. Matrix Anal. Appl. 30(4).
    """
    layout = layout_for(A.shape[-1], A.shape[0] if rows is None else rows.shape[0])
    stream = pair = A.new_empty(0)
    length = 0
    for at, count in chunks(A, rows):
        if count != length:
            stream, pair = layout.empty((len(weights) + 1, 2), count, A), layout.empty((2, 2), count, A)
            length = count
        layout.load(take(A, at), stream[0, 0], 2.0**-squarings)
        layout.load(take(E, at), stream[0, 1], 2.0**-squarings)
        flat, pair_flat = _rows(stream), _rows(pair)
        multiply_dual(layout, *stream[0], *stream[0], stream[1])
        for h, head in enumerate(weights[:-1], start=2):
            torch.mm(head, flat[:h], out=pair_flat)
            multiply_dual(layout, *pair[0], *pair[1], stream[h])
        torch.mm(weights[-1], flat, out=pair_flat[:1])
        layout.add_identity(pair[0, 0], identity)
        now, spare = pair[0], pair[1]
        for _ in range(squarings):
            multiply_dual(layout, *now, *now, spare)
            now, spare = spare, now
        put(out, at, layout.matrices(now[1]))
