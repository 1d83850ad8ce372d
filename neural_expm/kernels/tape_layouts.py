"""The layouts that tapes know, and which one is the faster: besides those of ``layout.py`` some made for one purpose.

``Lanes`` and ``Outer`` (``lanes.py``) let threads share small matrices, ``Adjoint`` takes the derivative at a
transposed view, ``Alone`` is for a single matrix.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache, partial

import torch
from torch import Tensor

from .lanes import Lanes, Outer, whole_lines
from .layout import BATCH_LAST_N, CHUNK_BYTES, GPU_CHUNK_BYTES, BatchFirst, Call, OneLane, even_parts, reals

# From so many entries on torch shares an element-wise operation among threads.
SHARED_FROM = 32768
LINE_BYTES = 64  # of a cache


def _chunk_bytes() -> int:
    """A quarter of a megabyte where the second-level cache has two: the six to nine tokens of a chunk stay in it.

    Into a smaller one, as of AMD, they would fit only with chunks so short that the calls cost more than they compute;
    there the third level serves them, and longer chunks make fewer calls.
    """
    told: dict[str, int] = {}
    with suppress(AttributeError, RuntimeError):  # an older torch, or a system that does not tell
        told = dict(torch.cpu.get_capabilities())
    return 1 << 18 if told.get("l2_cache_size", 0) >= 1 << 21 else CHUNK_BYTES


# Bytes of one token of a chunk, for each thread: of calls that are made once, chunks may be shorter than elsewhere.
TAPE_BYTES = _chunk_bytes()
# Entries of a batch from which on lanes repay the change of layout.
LANES_FROM = 1536


class Adjoint(BatchFirst):
    """As BatchFirst, but the first member of a pair is the transpose of the value.

    A derivative at a transposed view so reads matrices that lie in one piece: a batched GEMM transposes for nothing.
    Tokens are polynomials in one matrix, so that the transpose of a product is the product of the transposes.
    """

    @staticmethod
    def slope_of_product(X: Tensor, Y: Tensor, out: Tensor, added: bool = False) -> list[Call]:
        """The calls of out₁ ← X₁Y₀ᵀ + X₀ᵀY₁, or of adding it."""
        first = BatchFirst.added_product if added else BatchFirst.product
        return [*first(X[1], Y[0].mT, out[1]), *BatchFirst.added_product(X[0].mT, Y[1], out[1])]


class Alone(OneLane):
    """One matrix, (n, n); a pair lies side by side as (n, 2n), [X | dX], so that Q [V | dV] is one product.

    Only what a tape needs: a torch call costs as much as a small product, and these are the fewest.
    """

    spares_rows = False

    @staticmethod
    def leads(members: int) -> int:
        """One part of memory, for pairs too."""
        return 1

    @staticmethod
    def shape(count: int, rows: int, n: int, members: int) -> tuple[int, ...]:
        """Of a token, or of a pair of a token and its derivative."""
        return rows, n * members

    @staticmethod
    def columns(X: Tensor, start: int, stop: int) -> Tensor:
        """A view of some columns."""
        return X[:, start:stop]

    @staticmethod
    def token_of(X: Tensor) -> Tensor | None:
        """Contiguous (1, n, n) as a token."""
        return X[0]

    @staticmethod
    def parts(X: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the two members of a pair."""
        n = X.shape[0]
        return X[:, :n], X[:, n:]

    @staticmethod
    def load(A: Tensor, out: Tensor, scale: float) -> None:
        """Out ← scale · A, from (1, n, n)."""
        torch.mul(A[0], scale, out=out)

    @staticmethod
    def store(X: Tensor, out: Tensor) -> None:
        """Out ← X, to (1, n, n)."""
        out[0].copy_(X)

    @staticmethod
    def squared_norms(X: Tensor, scratch: Tensor) -> tuple[list[Call], Tensor]:
        """As ``Lanes.squared_norms``."""
        entries, norms = reals(X).view(1, -1), scratch.new_empty(1, 1, dtype=X.dtype.to_real())
        return [partial(torch.mm, entries, entries.mT, out=norms)], norms

    @staticmethod
    def product(X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← X Y."""
        return [partial(torch.mm, X, Y, out=out)]

    @staticmethod
    def added_product(X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← out + X Y."""
        return [partial(out.addmm_, X, Y)]

    @staticmethod
    def product_of_pairs(X: Tensor, Y: Tensor, out: Tensor, added: bool = False) -> list[Call]:
        """The calls of out ← (X₀Y₀, X₁Y₀ + X₀Y₁), or of adding them."""
        first = Alone.added_product if added else Alone.product
        (value, slope), n = Alone.parts(X), X.shape[0]
        return [*first(value, Y, out), *Alone.added_product(slope, Y[:, :n], out[:, n:])]

    slope_of_product = product_of_pairs

    @staticmethod
    def diagonal(X: Tensor) -> Tensor:
        """A view of the diagonal."""
        return X.diagonal()


TapeLayout = Lanes | type[BatchFirst] | type[Alone]


@lru_cache(maxsize=8)
def _lanes(threads: int, line: int, adds_products: bool) -> Lanes:
    return Lanes(threads, line, adds_products)


_OUTER = Outer()


def tape_layout(A: Tensor, count: int, members: int) -> tuple[TapeLayout, int]:
    """The faster layout for ``count`` of the matrices of A, and how many make a chunk."""
    if A.shape[0] == 1:
        return Alone, 1
    threads = torch.get_num_threads() if A.is_cpu else 1
    transposed = members == 2 and A.stride(-1) != 1 and A.mT.is_contiguous()
    room = TAPE_BYTES * threads if A.is_cpu else GPU_CHUNK_BYTES
    return _tape_layout(A.shape[-1], count, members, A.dtype, transposed, threads, room)


@lru_cache(maxsize=256)  # it takes as long as a call of torch
def _tape_layout(
    n: int, count: int, members: int, dtype: torch.dtype, transposed: bool, threads: int, room: int
) -> tuple[TapeLayout, int]:
    length = even_parts(count, room // (n * n * dtype.itemsize * members))
    shared, line = SHARED_FROM // (n * n) + 1, LINE_BYTES // dtype.itemsize
    # Of pairs it is enough to share the calls on both members.
    one_lane = threads == 1 or count < shared // members + threads
    # All terms of a product are enough for threads to share where the calls of a single lane are not; in double
    # precision batched GEMMs, which threads share as well, are the faster.
    shared_terms = one_lane and threads > 1 and dtype.is_complex and n**3 * count >= SHARED_FROM
    shared_products = shared_terms and n >= 4 and dtype == torch.complex128
    if n > BATCH_LAST_N or n * n * count < LANES_FROM or shared_products:
        return (Adjoint if transposed and not dtype.is_complex else BatchFirst), length
    # Processors with the smaller caches compute a product of three rows in single precision row by row.
    adds_products = dtype.to_real() == torch.float64 or TAPE_BYTES < CHUNK_BYTES
    if one_lane:
        layout = _OUTER if shared_terms else _lanes(1, 1, adds_products)
        return layout, min(whole_lines(length, line), count)
    if length < shared:
        length = -(-count // max(1, count // shared))  # even parts again
    if length < count:
        length = min(whole_lines(-(-length // threads), line), count // threads) * threads
    return _lanes(threads, line, adds_products), length
