"""The layouts that tapes know, and which one is the faster: besides those of ``layout.py`` some made for one purpose.

``Lanes`` and ``Outer`` let threads share small matrices, ``Adjoint`` takes the derivative at a transposed view,
``Alone`` is for a single matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial

import torch
from torch import Tensor

from .calling import CPU
from .layout import (
    BATCH_LAST_N,
    CHUNK_BYTES,
    GPU_CHUNK_BYTES,
    BatchFirst,
    BatchLast,
    Call,
    OneLane,
    change_layout,
    even_parts,
    reals,
)

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
# Up to this n a GEMM with the identity changes the layout back in half the time of a copy.
GEMM_STORES_N = 4


class Adjoint(BatchFirst):
    """As BatchFirst, but the first member of a pair is the transpose of the value.

    A derivative at a transposed view so reads matrices that lie in one piece: a batched GEMM transposes for nothing.
    Tokens are polynomials in one matrix, so that the transpose of a product is the product of the transposes.
    """

    @staticmethod
    def product_of_pairs(X: Tensor, Y: Tensor, out: Tensor, added: bool = False) -> list[Call]:
        """The calls of out ← (X₀Y₀, X₁Y₀ᵀ + X₀ᵀY₁), or of adding them."""
        first = BatchFirst.added_product if added else BatchFirst.product
        return [*first(X[0], Y[0], out[0]), *Adjoint.slope_of_product(X, Y, out, added)]

    @staticmethod
    def slope_of_product(X: Tensor, Y: Tensor, out: Tensor, added: bool = False) -> list[Call]:
        """Of :meth:`product_of_pairs` the second member."""
        first = BatchFirst.added_product if added else BatchFirst.product
        return [*first(X[1], Y[0].mT, out[1]), *BatchFirst.added_product(X[0].mT, Y[1], out[1])]


class Lanes:
    """Batch-last in as many equal lanes as there are threads: (lanes, n, n, length); a single lane has none.

    torch splits a large operation among its threads into equal runs of entries.  With the lanes outermost those are of
    the same matrices in every operation, which then stay in the cache of one core.  A pair has its two members behind
    the lanes, or in their place.

    Lanes overlap where they do not divide a chunk, or where its rows would not begin with a line of the cache: a vector
    instruction on entries of two lines takes twice as long.

    Args:
        lanes: how many.
        line: entries of a line.
        adds_products: whether to add one costs no more than to make it.
    """

    spares_rows = True

    def __init__(self, lanes: int, line: int = 1, adds_products: bool = True) -> None:
        self.lanes, self.line, self.adds_products = lanes, line, adds_products

    def leads(self, members: int) -> int:
        """In how many equal parts memory is: the lanes, or the members of a pair."""
        return self.lanes if self.lanes > 1 else members

    def span(self, count: int) -> tuple[int, int]:
        """Matrices of a lane, and after how many of them the next one begins."""
        if self.lanes == 1:
            return count, count
        length = _whole_lines(-(-count // self.lanes), self.line)
        step = (count - length) // (self.lanes - 1)
        return count - (self.lanes - 1) * step, step

    def shape(self, count: int, rows: int, n: int, members: int) -> tuple[int, ...]:
        """Of what a lead has of a token of matrices with so many rows."""
        pair = (2,) if self.lanes > 1 and members == 2 else ()
        return (*pair, rows, n, self.span(count)[0])

    token = staticmethod(OneLane.token)

    @staticmethod
    def token_of(X: Tensor) -> Tensor | None:
        """None: a batch lies otherwise."""
        return None

    @staticmethod
    def columns(X: Tensor, start: int, stop: int) -> Tensor:
        """A view of some columns."""
        return X[..., start:stop, :]

    @staticmethod
    def parts(X: Tensor) -> tuple[Tensor, ...]:
        """Views of the two members of a pair."""
        return X.unbind(-4)

    def load(self, A: Tensor, out: Tensor, scale: float) -> None:
        """Out ← scale · A, from (count, n, n) into the layout."""
        lying = A.permute(1, 2, 0) if self.lanes == 1 else A.unfold(0, *self.span(A.shape[0]))
        change_layout(lying, out, scale)

    def loading(self, out: Tensor, scale: float) -> Callable[[Tensor], object]:
        """The call with (count, n, n) that is :meth:`load`."""
        if self.lanes > 1:
            return partial(self.load, out=out, scale=scale)
        lying = out.permute(2, 0, 1)
        if scale == 1.0:
            return lying.copy_
        return partial(torch.mul, torch.full((), scale, dtype=out.dtype, device=out.device), out=lying)

    def storing(self, X: Tensor, count: int, n: int, finite: bool) -> Callable[[Tensor], object]:
        """The call with contiguous (count, n, n) that X goes to, from the layout; zero are the rows that X has not.

        ``finite``: no entry that matters is NaN or infinite.
        """
        rows, step = X.shape[-3], self.span(count)[1]
        done = self.lanes * step
        rest, X = X[..., step:], X[..., :step]
        gemm = finite and n <= GEMM_STORES_N and X.is_cpu and not X.is_complex()
        if gemm:
            lying, change = X.flatten(-3, -2).mT, _identity(self.lanes, rows * n, n * n, X.dtype)
            product = torch.mm if self.lanes == 1 else torch.bmm
        else:
            lying = X.movedim(-1, -3)

        def store(out: Tensor) -> None:
            parts = out if self.lanes == 1 else out[:done].view(self.lanes, step, n, n)
            if gemm:
                product(lying, change, out=parts.view(*lying.shape[:-1], n * n))
            else:
                BatchFirst.store(lying, parts)
            if done < count:
                BatchFirst.store(rest[-1].movedim(-1, 0), out[done:])

        return store

    def squared_norms(self, X: Tensor, scratch: Tensor) -> tuple[list[Call], Tensor]:
        """The calls of ‖X‖_F² of each matrix of a token, by way of another token, and where they put them."""
        lead = (*X.shape[:-3], X.shape[-3] * X.shape[-2])
        entries, squares = (reals(T).flatten(X.dim() - 1).view(*lead, -1) for T in (X, scratch))
        sums, ones = (
            entries.new_empty(*lead[:-1], 1, entries.shape[-1]),
            entries.new_ones(*lead[:-1], 1, lead[-1]),
        )
        product = torch.mm if self.lanes == 1 else torch.bmm
        calls: list[Call] = [
            partial(torch.mul, entries, entries, out=squares),
            partial(product, ones, squares, out=sums),
        ]
        if not X.is_complex():
            return calls, sums
        pairs, norms = sums.view(-1, 2), sums.new_empty(sums.numel() // 2, 1)
        return [*calls, partial(torch.mm, pairs, sums.new_ones(2, 1), out=norms)], norms

    def product(self, X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← X Y."""
        return BatchLast.product(X, Y, out)

    def added_product(self, X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← out + X Y."""
        return BatchLast.added_product(X, Y, out)

    def product_of_pairs(self, X: Tensor, Y: Tensor, out: Tensor, added: bool = False) -> list[Call]:
        """The calls of out ← (X₀Y₀, X₁Y₀ + X₀Y₁), or of adding them."""
        first = self.added_product if added else self.product
        (value, _), (_, slope) = self.parts(X), self.parts(Y)
        return [*first(X, Y.narrow(-4, 0, 1), out), *self.added_product(value, slope, self.parts(out)[1])]

    def slope_of_product(self, X: Tensor, Y: Tensor, out: Tensor, added: bool = False) -> list[Call]:
        """Of :meth:`product_of_pairs` the second member."""
        first = self.added_product if added else self.product
        (x, dx), (y, dy), (_, slope) = self.parts(X), self.parts(Y), self.parts(out)
        return [*first(dx, y, slope), *self.added_product(x, dy, slope)]

    @staticmethod
    def diagonal(X: Tensor) -> Tensor:
        """A view of the diagonals."""
        return X.diagonal(dim1=-3, dim2=-2)


@lru_cache(maxsize=16)
def _identity(lanes: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        identity = torch.eye(rows, columns, dtype=dtype, device=CPU)
        return identity if lanes == 1 else identity.expand(lanes, -1, -1)


class Outer(Lanes):
    """One lane of a complex batch too short for threads to share n calls: all terms of a product at once, then a sum.

    The terms make a way through memory that real ones would not repay; a GEMM with a row of ones adds them.

    Args:
        room: for the terms of a product, ``terms(…)`` entries; without, the layout describes and does not compute.
    """

    spares_rows = False

    def __init__(self, room: Tensor | None = None) -> None:
        super().__init__(1)
        self.room = room

    @staticmethod
    def terms(count: int, n: int, members: int) -> int:
        """Entries of the terms of a product."""
        return (3 if members == 2 else 1) * n**3 * count

    def product(self, X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← X Y."""
        terms = self._room(len(X), *X.shape)
        return [Outer._terms(X, Y, terms), Outer._sum(terms, out)]

    def added_product(self, X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← out + X Y."""
        terms = self._room(len(X), *X.shape)
        return [Outer._terms(X, Y, terms), Outer._sum(terms, out, added=True)]

    def product_of_pairs(self, X: Tensor, Y: Tensor, out: Tensor, added: bool = False) -> list[Call]:
        """The calls of out ← (X₀Y₀, X₁Y₀ + X₀Y₁), or of adding them."""
        n, token = X.shape[1], X.shape[1:]
        terms = self._room(3, n, *token)
        return [
            Outer._terms(X, Y[0], terms[:2]),
            Outer._terms(X[0], Y[1], terms[2]),
            Outer._sum(terms[0], out[0], added),
            Outer._sum(terms[1:].view(2 * n, *token), out[1], added),
        ]

    def slope_of_product(self, X: Tensor, Y: Tensor, out: Tensor, added: bool = False) -> list[Call]:
        """Of :meth:`product_of_pairs` the second member."""
        n, token = X.shape[1], X.shape[1:]
        terms = self._room(2, n, *token)
        return [
            Outer._terms(X[1], Y[0], terms[0]),
            Outer._terms(X[0], Y[1], terms[1]),
            Outer._sum(terms.view(2 * n, *token), out[1], added),
        ]

    def _room(self, *shape: int) -> Tensor:
        assert self.room is not None
        return self.room[: math.prod(shape)].view(shape)

    @staticmethod
    def _terms(X: Tensor, Y: Tensor, out: Tensor) -> Call:
        """The call of out[…, k, i, j, :] ← X[…, i, k, :] Y[k, j, :]."""
        return partial(torch.mul, X.transpose(-3, -2).unsqueeze(-2), Y.unsqueeze(-3), out=out)

    @staticmethod
    def _sum(terms: Tensor, out: Tensor, added: bool = False) -> Call:
        """The call of out ← Σ terms, or of adding it."""
        out, terms = reals(out).view(1, -1), reals(terms).view(len(terms), -1)
        ones = terms.new_ones(1, len(terms))
        return partial(out.addmm_, ones, terms) if added else partial(torch.mm, ones, terms, out=out)


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
        return layout, min(_whole_lines(length, line), count)
    if length < shared:
        length = -(-count // max(1, count // shared))  # even parts again
    if length < count:
        length = min(_whole_lines(-(-length // threads), line), count // threads) * threads
    return _lanes(threads, line, adds_products), length


def _whole_lines(length: int, line: int) -> int:
    """The next multiple of the entries of a line of the cache."""
    return -(-length // line) * line
