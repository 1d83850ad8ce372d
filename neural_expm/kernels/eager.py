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

from .layout import chunk_length
from .tape import tape_for
from .tape_layouts import Adjoint, TapeLayout, tape_layout


def chunks(A: Tensor, rows: Tensor | None) -> Iterator[tuple[slice | Tensor, int]]:
    """Indices of the matrices of each chunk, and how many they are."""
    count = A.shape[0] if rows is None else rows.shape[0]
    step = chunk_length(A, count)
    for start in range(0, count, step):
        at = slice(start, min(start + step, count))
        yield (at if rows is None else rows[at]), at.stop - start


def take(A: Tensor, at: slice | Tensor) -> Tensor:
    """The matrices of a chunk, with the strides of a contiguous or transposed A."""
    if isinstance(at, slice):
        return A[at]
    # Rows that lie in one piece are gathered many times faster than those of a transposed view.
    return A.mT.index_select(0, at).mT if A.stride(-1) != 1 else A.index_select(0, at)


def put(out: Tensor, at: slice | Tensor, X: Tensor) -> None:
    """Write the matrices of a chunk."""
    if isinstance(at, slice):
        out[at].copy_(X)
    else:
        out.index_copy_(0, at, X)


def exponential(
    A: Tensor,
    E: Tensor | None,
    weights: list[Tensor],
    identity: float,
    squarings: int,
    out: Tensor,
    rows: Tensor | None = None,
    squares: Tensor | None = None,
) -> None:
    """out[rows] = p(A[rows]/2^s)^(2^s), or its Fréchet derivative L(A[rows], E[rows]) in direction E.

    Args:
        A, E, out: shape (batch, n, n), same dtype and device; ``out`` contiguous.  E is None for the value.
        weights, identity: of ``EquivariantTransformer.packed`` in the real dtype of A.
        squarings: s.
        rows: int64 indices of the matrices to compute; None for all.
        squares: A², shape (batch, n, n), where it is already known and the value is asked for.

    Source: Higham, *Functions of Matrices*, section 3.2; Al-Mohy & Higham (2009), SIAM J. Matrix Anal. Appl. 30(4).
    """
    total = A.shape[0] if rows is None else rows.shape[0]
    if not total:
        return
    members = 1 if E is None else 2
    layout, count = tape_layout(A, total, members)
    tape = tape_for(A, layout, count, weights, identity, squarings, members)
    scale = 2.0**-squarings
    sources = [(A.mT if layout is Adjoint else A, scale)]
    if E is not None:
        sources.append((E, scale))
    elif squares is not None:
        sources.append((squares, scale * scale))
    for start in range(0, total, count):
        # The last chunk reaches back over some matrices of the one before, so that one tape serves all.
        at = slice(min(start, total - count), min(start, total - count) + count)
        chosen = at if rows is None else rows[at]
        for (source, factor), place in zip(sources, tape.inputs, strict=False):
            _load(layout, source, chosen, place, factor)
        tape.replay(squares is not None)
        _store(layout, tape.result, out, chosen)


def _load(layout: TapeLayout, A: Tensor, at: slice | Tensor, place: Tensor, scale: float) -> None:
    """Place ← scale · A[at]."""
    if isinstance(at, Tensor) and layout.as_given and A.is_contiguous():
        torch.index_select(A, 0, at, out=place)
        if scale != 1.0:
            place.mul_(scale)
    else:
        layout.load(take(A, at), place, scale)


def _store(layout: TapeLayout, X: Tensor, out: Tensor, at: slice | Tensor) -> None:
    """Out[at] ← X."""
    if isinstance(at, slice):
        layout.store(X, out[at])
    elif layout.as_given:
        out.index_copy_(0, at, X)
    else:
        result = out.new_empty(at.shape[0], *out.shape[1:])
        layout.store(X, result)
        out.index_copy_(0, at, result)
