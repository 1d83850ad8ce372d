"""The same polynomials as ``reference``, without a compiler: preallocated, in place, in chunks that fit the cache.

The residual stream of a chunk is one contiguous array, so that scores and values of a head are a single (2 × h) by
(h × entries) product and a layer costs two torch calls.

The derivative is the Fréchet derivative L(A, E), carried beside the value through the same products
(dX = dQ V + Q dV).  The adjoint of a matrix function needs nothing else: its vector–Jacobian product is L(Aᴴ, G)
(Higham, *Functions of Matrices*, section 3.2).  Memory is one chunk, whatever the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import complex_step
from .calling import readable
from .chunks import equal_chunks, take
from .layout import BATCH_LAST_N
from .tape import BorrowedTape, Form, Recording, Tape
from .tape_layouts import Adjoint, TapeLayout, tape_layout

# Entries of a batch from which on zero rows are looked for: of matrices in lanes, and of those in batched GEMMs.
SPARED_FROM = 1 << 14, 1 << 16


def exponential(
    A: Tensor,
    E: Tensor | None,
    weights: list[Tensor],
    identity: float,
    squarings: int,
    out: Tensor,
    rows: Tensor | None = None,
    squares: Tensor | None = None,
    occupied: int | None = None,
) -> None:
    """out[rows] = p(A[rows]/2^s)^(2^s), or its Fréchet derivative L(A[rows], E[rows]) in direction E.

    Args:
        A, E, out: shape (batch, n, n), same dtype and device; ``out`` contiguous.  E is None for the value.
        weights, identity: of ``EquivariantTransformer.packed`` in the real dtype of A.
        squarings: s.
        rows: int64 indices of the matrices to compute; None for all.
        squares: A², shape (batch, n, n), where it is already known and the value is asked for.
        occupied: rows of each matrix that are not known to be zero, for the value; None for all.

    Source: Higham, *Functions of Matrices*, section 3.2; Al-Mohy & Higham (2009), SIAM J. Matrix Anal. Appl. 30(4).
    """
    total = A.shape[0] if rows is None else rows.shape[0]
    if not total:
        return
    if E is not None and complex_step.suits(A, total, squarings):
        complex_step.frechet(A, E, weights, identity, squarings, out, rows)
        return
    members = 1 if E is None else 2
    layout, count = tape_layout(A, total, members)
    n, scale = A.shape[-1], 2.0**-squarings
    used = n if occupied is None or E is not None or not layout.spares_rows else occupied
    sources = [(A.mT if layout is Adjoint else A, scale)]
    if E is not None:
        sources.append((E, scale))
    elif squares is not None:
        sources.append((squares, scale * scale))
    if used < n:
        sources = [(X[:, :used], factor) for X, factor in sources]
    recording = Recording(Form(layout, count, n, used, members), weights, identity, squarings, A.dtype)
    with BorrowedTape(A, recording) as tape:
        for at in equal_chunks(total, count, rows):  # so that one tape serves all
            for (source, factor), token in zip(sources, tape.inputs, strict=False):
                _load(layout, source, at, token, factor)
            direct = isinstance(at, slice) and E is None and used == n
            tape.replay(squares is not None, take(out, at) if direct else None)
            if not direct:
                below = None if used == n else (used, identity ** (2**squarings))
                _store(layout, tape, out, at, below)


def worth_sparing(count: int, n: int) -> bool:
    """Whether so many matrices repay the search for zero rows and the filling of those of the result."""
    return count * n * n >= (SPARED_FROM[0] if n <= BATCH_LAST_N else SPARED_FROM[1])


def occupied_rows(A: Tensor) -> int:
    """How many rows are left of matrices that end with zero rows in all of a batch, such as of affine maps.

    exp of [[A, b], [0, 0]] ends with the rows of the identity.
    """
    n = A.shape[-1]
    if not worth_sparing(*A.shape[:2]) or not A.is_cpu or not readable(A) or any(A[0, -1].tolist()):
        return n
    used = max((row + 1 for row, occupied in enumerate(A[0].any(-1).tolist()) if occupied), default=1)
    return n if torch.count_nonzero(A[:, used:]) else used


def _load(layout: TapeLayout, A: Tensor, at: slice | Tensor, place: Tensor, scale: float) -> None:
    """Place ← scale · A[at]."""
    if isinstance(at, Tensor) and layout.token_of(place) is place and A.is_contiguous():
        torch.index_select(A, 0, at, out=place)
        if scale != 1.0:
            place.mul_(scale)
    else:
        layout.load(take(A, at), place, scale)


def _store(
    layout: TapeLayout, tape: Tape, out: Tensor, at: slice | Tensor, below: tuple[int, float] | None
) -> None:
    """Out[at] ← the result of a tape.

    ``below``: how many rows that has, where it has not all, and the number times which the identity has the others.
    """
    place = tape.result
    if below is not None or layout.token_of(place) is not place or isinstance(at, slice):
        place = take(out, at) if isinstance(at, slice) else out.new_empty(at.shape[0], *out.shape[1:])
        tape.store(place)
    if below is not None:  # while the lines of the cache that they share with the rows above are there
        rows, number = below
        place[:, rows:].diagonal(rows, -2, -1).fill_(number)
    if isinstance(at, Tensor):
        out.index_copy_(0, at, place)
