"""How a chunk of matrices lies in memory: one matrix after another, or one entry of all matrices after another.

Small matrices lie batch-last, (n, n, count): a matrix product is then n fused multiply-adds over long contiguous rows
instead of one tiny GEMM a matrix.  Both layouts have the same face, so that a kernel is written once.

A product is a list of calls with their tensors bound: making the views of a call takes longer than a call on a small
chunk, so a kernel that runs many chunks makes them once (``tape.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

# Largest n whose products are faster batch-last (``bmm`` has no good kernel below n³ = 400), and the smallest batch
# where the change of layout pays.
BATCH_LAST_N = 7
BATCH_LAST_COUNT = 256
# Bytes of one token of a chunk, for each thread: six to nine tokens together stay in a second-level cache, and a token
# has more than the entries from which on torch shares an operation among threads.
CHUNK_BYTES = 1 << 18
SHARED_FROM = 32768
LINE_BYTES = 64  # of a cache
# On a GPU a launch takes microseconds whatever it does, and there is no such cache to stay in.
GPU_CHUNK_BYTES = 1 << 26

Call = Callable[[], object]


class _OneLane:
    """A layout that leaves the sharing among threads to the products."""

    lanes = 1
    # Whether matrices lie as in a batch, so that rows of it go in and out without a copy between.
    as_given = False

    @staticmethod
    def token(X: Tensor) -> Tensor:
        """A token from its only lane."""
        return X[0]


class BatchFirst(_OneLane):
    """Matrices as (count, n, n): products are batched GEMMs."""

    dims = (-2, -1)
    as_given = True

    @staticmethod
    def shape(count: int, n: int, members: int) -> tuple[int, ...]:
        """Of a token, or of a pair of a token and its derivative."""
        return (*((2,) if members == 2 else ()), count, n, n)

    @staticmethod
    def parts(X: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the two members of a pair."""
        return X[0], X[1]

    @staticmethod
    def empty(lead: tuple[int, ...], count: int, A: Tensor) -> Tensor:
        """Uninitialised (*lead, count, n, n) of the dtype and device of A, which is (…, n, n)."""
        return A.new_empty((*lead, *BatchFirst.shape(count, A.shape[-1], 1)))

    @staticmethod
    def load(A: Tensor, out: Tensor, scale: float | Tensor) -> None:
        """Out ← scale · A, from (count, n, n) into the layout; a tensor scales each matrix by its own number."""
        torch.mul(A, scale[:, None, None] if isinstance(scale, Tensor) else scale, out=out)

    @staticmethod
    def store(X: Tensor, out: Tensor) -> None:
        """Out ← X, from the layout to (count, n, n)."""
        out.copy_(X)

    @staticmethod
    def matrices(X: Tensor) -> Tensor:
        """A view as (…, count, n, n)."""
        return X

    @staticmethod
    def product(X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← X Y."""
        return [partial(torch.bmm, X, Y, out=out)]

    @staticmethod
    def added_product(X: Tensor, Y: Tensor, out: Tensor, alpha: float = 1.0) -> list[Call]:
        """The calls of out ← out + alpha · X Y."""
        return [partial(out.baddbmm_, X, Y, alpha=alpha)]

    @staticmethod
    def product_of_pairs(X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← (X₀Y₀, X₁Y₀ + X₀Y₁): pairs lead with a dimension of two."""
        calls = [partial(torch.bmm, X[i], Y[0], out=out[i]) for i in (0, 1)]
        return [*calls, *BatchFirst.added_product(X[0], Y[1], out[1])]

    @staticmethod
    def multiply(X: Tensor, Y: Tensor, out: Tensor) -> None:
        """Out ← X Y."""
        torch.bmm(X, Y, out=out)

    @staticmethod
    def multiply_add(X: Tensor, Y: Tensor, out: Tensor, beta: float = 1.0, alpha: float = 1.0) -> None:
        """Out ← beta · out + alpha · X Y."""
        out.baddbmm_(X, Y, beta=beta, alpha=alpha)

    @staticmethod
    def diagonal(X: Tensor) -> Tensor:
        """A view of the diagonals."""
        return X.diagonal(dim1=-2, dim2=-1)

    @staticmethod
    def add_identity(X: Tensor, weight: float) -> None:
        """X ← X + weight · I."""
        BatchFirst.diagonal(X).add_(weight)


class Adjoint(BatchFirst):
    """As BatchFirst, but the first member of a pair is the transpose of the value.

    A derivative at a transposed view so reads matrices that lie in one piece: a batched GEMM transposes for nothing.
    Tokens are polynomials in one matrix, so that the transpose of a product is the product of the transposes.
    """

    @staticmethod
    def product_of_pairs(X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← (X₀Y₀, X₁Y₀ᵀ + X₀ᵀY₁)."""
        calls = [partial(torch.bmm, X[0], Y[0], out=out[0]), partial(torch.bmm, X[1], Y[0].mT, out=out[1])]
        return [*calls, *BatchFirst.added_product(X[0].mT, Y[1], out[1])]


class BatchLast:
    """Matrices as (n, n, count): products are broadcasts over long rows."""

    dims = (0, 1)

    @staticmethod
    def empty(lead: tuple[int, ...], count: int, A: Tensor) -> Tensor:
        """Uninitialised (*lead, n, n, count)."""
        return A.new_empty((*lead, A.shape[-1], A.shape[-1], count))

    @staticmethod
    def load(A: Tensor, out: Tensor, scale: float | Tensor) -> None:
        """Out ← scale · A, from (count, n, n).

        A product with a scaled permutation is a faster change of layout than a strided copy, and the transpose comes
        free; it moves nothing between matrices, not even NaN.
        """
        n, count = A.shape[-1], A.shape[0]
        rows = A.stride() == (n * n, n, 1)
        if isinstance(scale, Tensor) or A.is_complex() or not (rows or A.stride() == (n * n, 1, n)):
            last = A.permute(1, 2, 0)
            if isinstance(scale, float) and scale == 1.0:
                out.copy_(last)  # takes a conjugate on the way; a product does so in a pass of its own
            else:
                torch.mul(last, scale, out=out)
            return
        flat = A.as_strided((n * n, count), (1, n * n))
        torch.mm(_permutation(n, not rows, scale, A.dtype, A.device), flat, out=out.view(n * n, count))

    @staticmethod
    def store(X: Tensor, out: Tensor) -> None:
        """Out ← X, from the layout to contiguous (count, n, n)."""
        n, count = X.shape[0], X.shape[-1]
        if X.is_complex():
            out.copy_(BatchLast.matrices(X))
        else:
            eye = _permutation(n, False, 1.0, X.dtype, X.device)
            torch.mm(X.view(n * n, count).t(), eye, out=out.view(count, n * n))

    @staticmethod
    def matrices(X: Tensor) -> Tensor:
        """A view as (count, n, n)."""
        return X.permute(2, 0, 1)

    @staticmethod
    def product(X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← X Y."""
        (column, row), *rest = BatchLast._outer(X, Y)
        add = out.addcmul_
        return [partial(torch.mul, column, row, out=out), *(partial(add, c, r) for c, r in rest)]

    @staticmethod
    def added_product(X: Tensor, Y: Tensor, out: Tensor, alpha: float = 1.0) -> list[Call]:
        """The calls of out ← out + alpha · X Y."""
        add = out.addcmul_
        return [partial(add, column, row, value=alpha) for column, row in BatchLast._outer(X, Y)]

    @staticmethod
    def product_of_pairs(X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← (X₀Y₀, X₁Y₀ + X₀Y₁): pairs lead with a dimension of two."""
        return [*BatchLast.product(X, Y[0], out), *BatchLast.added_product(X[0], Y[1], out[1])]

    @staticmethod
    def multiply(X: Tensor, Y: Tensor, out: Tensor) -> None:
        """Out ← X Y."""
        run(BatchLast.product(X, Y, out))

    @staticmethod
    def multiply_add(X: Tensor, Y: Tensor, out: Tensor, beta: float = 1.0, alpha: float = 1.0) -> None:
        """Out ← beta · out + alpha · X Y."""
        if beta != 1.0:
            out.mul_(beta)
        run(BatchLast.added_product(X, Y, out, alpha))

    @staticmethod
    def _outer(X: Tensor, Y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Columns of X and rows of Y that broadcast to rank-one terms; unbinding is cheaper than indexing."""
        return list(zip(X.unsqueeze(-2).unbind(-3), Y.unsqueeze(-4).unbind(-3), strict=True))

    @staticmethod
    def diagonal(X: Tensor) -> Tensor:
        """A view of the diagonals."""
        return X.diagonal(dim1=0, dim2=1)

    @staticmethod
    def add_identity(X: Tensor, weight: float) -> None:
        """X ← X + weight · I."""
        BatchLast.diagonal(X).add_(weight)


class Lanes:
    """Batch-last in as many equal lanes as there are threads: (lanes, n, n, count/lanes); a single lane has no lead.

    torch splits a large operation among its threads into equal runs of entries.  With the lanes outermost those are of
    the same matrices in every operation, which then stay in the cache of one core.  A pair has its two members behind
    the lanes.
    """

    as_given = False

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes

    def shape(self, count: int, n: int, members: int) -> tuple[int, ...]:
        """Of a lane of a token, or of a pair of a token and its derivative."""
        return (*((2,) if members == 2 else ()), n, n, count // self.lanes)

    def token(self, X: Tensor) -> Tensor:
        """A token from all of its lanes."""
        return X if self.lanes > 1 else X[0]

    @staticmethod
    def parts(X: Tensor) -> tuple[Tensor, ...]:
        """Views of the two members of a pair."""
        return X.unbind(-4)

    def load(self, A: Tensor, out: Tensor, scale: float) -> None:
        """Out ← scale · A, from (count, n, n) into the layout."""
        for part, lane in zip(A.chunk(self.lanes), self._split(out), strict=True):
            BatchLast.load(part, lane, scale)

    def store(self, X: Tensor, out: Tensor) -> None:
        """Out ← X, from the layout to contiguous (count, n, n)."""
        for part, lane in zip(out.chunk(self.lanes), self._split(X), strict=True):
            BatchLast.store(lane, part)

    def _split(self, X: Tensor) -> tuple[Tensor, ...]:
        return X.unbind() if self.lanes > 1 else (X,)

    product = staticmethod(BatchLast.product)

    def product_of_pairs(self, X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← (X₀Y₀, X₁Y₀ + X₀Y₁)."""
        calls = BatchLast.product(X, Y.narrow(-4, 0, 1), out)
        return [*calls, *BatchLast.added_product(X.select(-4, 0), Y.select(-4, 1), out.select(-4, 1))]

    @staticmethod
    def diagonal(X: Tensor) -> Tensor:
        """A view of the diagonals."""
        return X.diagonal(dim1=-3, dim2=-2)


class Outer(Lanes):
    """One lane of a complex batch too short for threads to share n calls: all terms of a product at once, then a sum.

    The terms make a way through memory that real ones would not repay; a GEMM with a row of ones adds them.

    Args:
        room: for the terms of a product, ``terms(…)`` entries; without, the layout describes and does not compute.
    """

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

    def product_of_pairs(self, X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← (X₀Y₀, X₁Y₀ + X₀Y₁)."""
        n, token = X.shape[1], X.shape[1:]
        terms = self._room(3, n, *token)
        return [
            Outer._terms(X, Y[0], terms[:2]),
            Outer._terms(X[0], Y[1], terms[2]),
            Outer._sum(terms[0], out[0]),
            Outer._sum(terms[1:].view(2 * n, *token), out[1]),
        ]

    def _room(self, *shape: int) -> Tensor:
        assert self.room is not None
        return self.room.view(shape)

    @staticmethod
    def _terms(X: Tensor, Y: Tensor, out: Tensor) -> Call:
        """The call of out[…, k, i, j, :] ← X[…, i, k, :] Y[k, j, :]."""
        return partial(torch.mul, X.transpose(-3, -2).unsqueeze(-2), Y.unsqueeze(-3), out=out)

    @staticmethod
    def _sum(terms: Tensor, out: Tensor) -> Call:
        """The call of out ← Σ terms."""
        terms, out = torch.view_as_real(terms), torch.view_as_real(out)
        ones = torch.ones(1, len(terms), dtype=terms.dtype, device=terms.device)
        return partial(torch.mm, ones, terms.view(len(terms), -1), out=out.view(1, -1))


class Alone(_OneLane):
    """One matrix, (n, n); a pair lies side by side as (n, 2n), [X | dX], so that Q [V | dV] is one product.

    Only what a tape needs: a torch call costs as much as a small product, and these are the fewest.
    """

    @staticmethod
    def shape(count: int, n: int, members: int) -> tuple[int, ...]:
        """Of a token, or of a pair of a token and its derivative."""
        return n, n * members

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
    def product(X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← X Y."""
        return [partial(torch.mm, X, Y, out=out)]

    @staticmethod
    def product_of_pairs(X: Tensor, Y: Tensor, out: Tensor) -> list[Call]:
        """The calls of out ← (X₀Y₀, X₁Y₀ + X₀Y₁)."""
        (value, slope), n = Alone.parts(X), X.shape[0]
        return [partial(torch.mm, value, Y, out=out), partial(out[:, n:].addmm_, slope, Y[:, :n])]

    @staticmethod
    def diagonal(X: Tensor) -> Tensor:
        """A view of the diagonal."""
        return X.diagonal()


Layout = type[BatchFirst] | type[BatchLast]
TapeLayout = Lanes | type[BatchFirst] | type[Alone]


@lru_cache(maxsize=256)
def _permutation(n: int, transpose: bool, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Scale · (the matrix of vec A ↦ vec A, or of vec A ↦ vec Aᵀ)."""
    eye = torch.eye(n * n, dtype=dtype, device=device) * scale
    return eye.view(n, n, n * n).transpose(0, 1).reshape(n * n, n * n) if transpose else eye


def run(calls: Sequence[Call]) -> None:
    """One after another."""
    for call in calls:
        call()


def layout_for(n: int, count: int) -> Layout:
    """The faster layout for this size and number of matrices."""
    return BatchLast if n <= BATCH_LAST_N and count >= BATCH_LAST_COUNT else BatchFirst


@lru_cache(maxsize=8)
def _lanes(threads: int) -> Lanes:
    return Lanes(threads)


_OUTER = Outer()


def tape_layout(A: Tensor, count: int, members: int) -> tuple[TapeLayout, int]:
    """The faster layout for ``count`` of the matrices of A, and how many make a chunk."""
    n = A.shape[-1]
    length = chunk_length(A, count, members)
    if A.shape[0] == 1:
        return Alone, 1
    if layout_for(n, count) is BatchFirst:
        transposed = members == 2 and not A.is_complex() and A.stride(-1) != 1 and A.mT.is_contiguous()
        return (Adjoint if transposed else BatchFirst), length
    threads = torch.get_num_threads() if A.device.type == "cpu" else 1
    shared = SHARED_FROM // (n * n) + 1
    if threads == 1 or count < shared + threads:
        outer = threads > 1 and A.is_complex() and n**3 * count >= SHARED_FROM
        return (_OUTER if outer else _lanes(1)), _whole_lines(length, count, A)
    if length < shared:
        length = -(-count // (count // shared))  # even parts again
    return _lanes(threads), _whole_lines(-(-length // threads), count // threads, A) * threads


def _whole_lines(length: int, most: int, A: Tensor) -> int:
    """At least ``length`` and at most ``most``, so that rows of so many entries begin with a line of the cache.

    A vector instruction on entries of two lines takes twice as long.
    """
    entries = LINE_BYTES // A.element_size()
    return min(-(-length // entries) * entries, most)


def chunk_length(A: Tensor, count: int, members: int = 1) -> int:
    """Matrices in a chunk: even parts of at most CHUNK_BYTES a thread; of pairs with a derivative for two members."""
    room = CHUNK_BYTES * torch.get_num_threads() if A.device.type == "cpu" else GPU_CHUNK_BYTES
    most = max(1, room // (A.shape[-1] ** 2 * A.element_size() * members))
    parts = -(-count // most)
    return -(-count // parts) if count else 1


def multiply_dual(layout: Layout, X: Tensor, Y: Tensor, out: Tensor) -> None:
    """(X + ε dX)(Y + ε dY) = XY + ε (dX Y + X dY), for pairs with a leading dimension of two."""
    run(layout.product_of_pairs(X, Y, out))
