"""Small matrices batch-last in lanes, one for each thread: layouts of tapes (see ``tape_layouts.py``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from .calling import CPU
from .layout import BatchFirst, BatchLast, Call, OneLane, change_layout, reals

# Up to this n a GEMM with the identity changes the layout back in half the time of a copy.
GEMM_STORES_N = 4


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
        length = whole_lines(-(-count // self.lanes), self.line)
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

    product = staticmethod(BatchLast.product)

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


def whole_lines(length: int, line: int) -> int:
    """The next multiple of the entries of a line of the cache."""
    return -(-length // line) * line
