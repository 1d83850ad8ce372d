"""The same polynomials as ``reference``, without a compiler: preallocated, in place, in chunks that fit the cache.

The residual stream of a chunk is one contiguous array, so that scores and values of a head are a single (2 × h) by
(h × entries) product and a layer costs two torch calls.  Small matrices lie batch-last, (n, n, batch): a matrix
product is then n fused multiply-adds over long contiguous rows instead of one tiny GEMM a matrix.

The derivative is the Fréchet derivative L(A, E), carried beside the value through the same products
(dX = dQ V + Q dV).  The adjoint of a matrix function needs nothing else: its vector–Jacobian product is L(Aᴴ, G)
(Higham, *Functions of Matrices*, section 3.2).  Memory is one chunk, whatever the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Largest n whose products are faster batch-last, and the smallest batch where the change of layout pays; measured by
# benchmarks/layouts.py, as is the chunk: entries of one token that keep a whole residual stream in the L2 cache.
BATCH_LAST_N = 5
BATCH_LAST_COUNT = 48
CHUNK_BYTES = 1 << 19


class _BatchFirst:
    """Matrices as (count, n, n): products are batched GEMMs."""

    @staticmethod
    def empty(lead: tuple[int, ...], count: int, A: Tensor) -> Tensor:
        return A.new_empty((*lead, count, A.shape[-1], A.shape[-1]))

    @staticmethod
    def load(A: Tensor, out: Tensor, scale: float) -> None:
        torch.mul(A, scale, out=out)

    @staticmethod
    def store(X: Tensor, out: Tensor) -> None:
        out.copy_(X)

    @staticmethod
    def multiply(X: Tensor, Y: Tensor, out: Tensor) -> None:
        torch.bmm(X, Y, out=out)

    @staticmethod
    def multiply_add(X: Tensor, Y: Tensor, out: Tensor) -> None:
        torch.baddbmm(out, X, Y, out=out)

    @staticmethod
    def add_identity(X: Tensor, weight: float) -> None:
        X.diagonal(dim1=-2, dim2=-1).add_(weight)


class _BatchLast:
    """Matrices as (n, n, count): products are broadcasts over long rows."""

    @staticmethod
    def empty(lead: tuple[int, ...], count: int, A: Tensor) -> Tensor:
        return A.new_empty((*lead, A.shape[-1], A.shape[-1], count))

    @staticmethod
    def load(A: Tensor, out: Tensor, scale: float) -> None:
        torch.mul(A.permute(1, 2, 0), scale, out=out)

    @staticmethod
    def store(X: Tensor, out: Tensor) -> None:
        out.copy_(X.permute(2, 0, 1))

    @staticmethod
    def multiply(X: Tensor, Y: Tensor, out: Tensor) -> None:
        torch.mul(X[:, 0, None], Y[None, 0], out=out)
        for k in range(1, X.shape[0]):
            out.addcmul_(X[:, k, None], Y[None, k])

    @staticmethod
    def multiply_add(X: Tensor, Y: Tensor, out: Tensor) -> None:
        for k in range(X.shape[0]):
            out.addcmul_(X[:, k, None], Y[None, k])

    @staticmethod
    def add_identity(X: Tensor, weight: float) -> None:
        X.diagonal(dim1=0, dim2=1).add_(weight)


def _rows(X: Tensor) -> Tensor:
    """The tokens as rows of a real matrix, without a copy."""
    return (torch.view_as_real(X) if X.is_complex() else X).view(X.shape[0], -1)


def _layout(A: Tensor, count: int) -> type[_BatchFirst] | type[_BatchLast]:
    return _BatchLast if A.shape[-1] <= BATCH_LAST_N and count >= BATCH_LAST_COUNT else _BatchFirst


def _chunks(A: Tensor, count: int, tokens: int) -> int:
    """Matrices in a chunk: even parts, each with a residual stream of about CHUNK_BYTES per token."""
    most = max(1, CHUNK_BYTES // (A.shape[-1] ** 2 * A.element_size()))
    parts = -(-count // most)
    return -(-count // parts)


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
    count = A.shape[0] if rows is None else rows.shape[0]
    layout = _layout(A, count)
    step = _chunks(A, count, len(weights) + 1)
    stream_all = layout.empty((len(weights) + 1,), step, A)
    pair_all = layout.empty((2,), step, A)
    for start in range(0, count, step):
        stop = min(start + step, count)
        if stop - start == step:
            stream, pair = stream_all, pair_all
        else:
            stream, pair = (
                layout.empty((len(weights) + 1,), stop - start, A),
                layout.empty((2,), stop - start, A),
            )
        chosen = A[start:stop] if rows is None else A.index_select(0, rows[start:stop])
        layout.load(chosen, stream[0], 2.0**-squarings)
        flat, pair_flat = _rows(stream), _rows(pair)
        if squares is None:
            layout.multiply(stream[0], stream[0], stream[1])
        else:
            known = squares[start:stop] if rows is None else squares.index_select(0, rows[start:stop])
            layout.load(known, stream[1], 4.0**-squarings)
        for h, head in enumerate(weights[:-1], start=2):
            torch.mm(head, flat[:h], out=pair_flat)
            layout.multiply(pair[0], pair[1], stream[h])
        torch.mm(weights[-1], flat, out=pair_flat[:1])
        X, spare = pair[0], pair[1]
        layout.add_identity(X, identity)
        for _ in range(squarings):
            layout.multiply(X, X, spare)
            X, spare = spare, X
        if rows is None:
            layout.store(X, out[start:stop])
        else:
            out.index_copy_(0, rows[start:stop], X if layout is _BatchFirst else X.permute(2, 0, 1))


def exponential_frechet(
    A: Tensor,
    E: Tensor,
    weights: list[Tensor],
    squarings: int,
    identity: float,
    out: Tensor,
    rows: Tensor | None = None,
) -> None:
    """out[rows] = L(A[rows], E[rows]), the Fréchet derivative of :func:`exponential` in direction E.

    Args:
        A, E, out: shape (batch, n, n), same dtype and device; ``out`` contiguous.
        weights, identity, squarings, rows: as in :func:`exponential`.

    Source: Higham, *Functions of Matrices*, section 3.2; Al-Mohy & Higham (2009), SIAM J. Matrix Anal. Appl. 30(4).
    """
    count = A.shape[0] if rows is None else rows.shape[0]
    layout = _layout(A, count)
    step = _chunks(A, count, 2 * (len(weights) + 1))
    for start in range(0, count, step):
        stop = min(start + step, count)
        stream, pair = (
            layout.empty((len(weights) + 1, 2), stop - start, A),
            layout.empty((2, 2), stop - start, A),
        )
        for source, target in ((A, stream[0, 0]), (E, stream[0, 1])):
            chosen = source[start:stop] if rows is None else source.index_select(0, rows[start:stop])
            layout.load(chosen, target, 2.0**-squarings)
        flat, pair_flat = _rows(stream), _rows(pair)
        X, dX = stream[0]
        _multiply_dual(layout, X, dX, X, dX, stream[1])
        for h, head in enumerate(weights[:-1], start=2):
            torch.mm(head, flat[:h], out=pair_flat)
            _multiply_dual(layout, *pair[0], *pair[1], stream[h])
        torch.mm(weights[-1], flat, out=pair_flat[:1])
        layout.add_identity(pair[0, 0], identity)
        now, spare = pair[0], pair[1]
        for _ in range(squarings):
            _multiply_dual(layout, *now, *now, spare)
            now, spare = spare, now
        if rows is None:
            layout.store(now[1], out[start:stop])
        else:
            out.index_copy_(0, rows[start:stop], now[1] if layout is _BatchFirst else now[1].permute(2, 0, 1))


def _multiply_dual(layout, X: Tensor, dX: Tensor, Y: Tensor, dY: Tensor, out: Tensor) -> None:
    """(X + ε dX)(Y + ε dY) = XY + ε (dX Y + X dY)."""
    layout.multiply(X, Y, out[0])
    layout.multiply(dX, Y, out[1])
    layout.multiply_add(X, dY, out[1])
