"""How a chunk of matrices lies in memory: one matrix after another, or one entry of all matrices after another.

Small matrices lie batch-last, (n, n, count): a matrix product is then n fused multiply-adds over long contiguous rows
instead of one tiny GEMM a matrix.  Both layouts have the same face, so that a kernel is written once.

A product is a list of calls with their tensors bound: making the views of a call takes longer than a call on a small
chunk, so a kernel that runs many chunks makes them once (``tape.py``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

# Largest n whose products are faster batch-last (``bmm`` has no good kernel below n³ = 400), and the smallest batch
# where the change of layout pays (of tapes: ``tape_layouts.LANES_FROM``).
BATCH_LAST_N = 7
BATCH_LAST_COUNT = 256
# Bytes of one token of a chunk, for each thread: those that a call works on stay in the caches of a core, and a call
# costs little beside what it computes.
CHUNK_BYTES = 1 << 19
# On a GPU a launch takes microseconds whatever it does, and there is no such cache to stay in.
GPU_CHUNK_BYTES = 1 << 26

Call = Callable[[], object]


class OneLane:
    """A layout that leaves the sharing among threads to the products."""

    # Whether products know of rows that are zero in all matrices; and whether to add one costs no more than to make it.
    spares_rows, adds_products = True, False

    @staticmethod
    def leads(members: int) -> int:
        """In how many equal parts memory is, which are combined side by side: a value and its derivative."""
        return members

    @staticmethod
    def token(X: Tensor) -> Tensor:
        """A token, or a pair of a token and its derivative, from all leads."""
        return X if X.shape[0] > 1 else X[0]

    @classmethod
    def loading(cls, out: Tensor, scale: float) -> Callable[[Tensor], object]:
        """The call with (count, n, n) that is :meth:`load`."""
        return partial(cls.load, out=out, scale=scale)

    @staticmethod
    @abstractmethod
    def load(A: Tensor, out: Tensor, scale: float) -> None:
        """Out ← scale · A, from (count, n, n) into the layout."""

    @classmethod
    def storing(cls, X: Tensor, count: int, n: int, finite: bool) -> Callable[[Tensor], object]:
        """The call with contiguous (count, n, n) that X goes to; see ``Lanes.storing``."""
        return partial(cls.store, X)

    @staticmethod
    @abstractmethod
    def store(X: Tensor, out: Tensor) -> None:
        """Out ← X, from the layout to (count, n, n)."""

    @staticmethod
    def squared_norms(X: Tensor, scratch: Tensor) -> tuple[list[Call], Tensor]:
        """The calls of ‖X‖_F² of each matrix of a token, by way of another token, and where they put them."""
        entries, squares = (reals(T).flatten(1) for T in (X, scratch))
        norms, ones = entries.new_empty(len(entries), 1), entries.new_ones(entries.shape[1], 1)
        return [
            partial(torch.mul, entries, entries, out=squares),
            partial(torch.mm, squares, ones, out=norms),
        ], norms


class BatchFirst(OneLane):
    """Matrices as (count, n, n): products are batched GEMMs."""

    dims = (-2, -1)

    @staticmethod
    def shape(count: int, rows: int, n: int, members: int) -> tuple[int, ...]:
        """Of what a lead has of a token of matrices with so many rows."""
        return count, rows, n

    @staticmethod
    def token_of(X: Tensor) -> Tensor | None:
        """Contiguous (count, n, n) as a token, in the layouts where it is one as it lies."""
        return X

    @staticmethod
    def columns(X: Tensor, start: int, stop: int) -> Tensor:
        """A view of some columns."""
        return X[..., start:stop]

    @staticmethod
    def parts(X: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the two members of a pair."""
        return X[0], X[1]

    @staticmethod
    def empty(lead: tuple[int, ...], count: int, A: Tensor) -> Tensor:
        """Uninitialised (*lead, count, n, n) of the dtype and device of A, which is (…, n, n)."""
        return A.new_empty((*lead, *BatchFirst.shape(count, A.shape[-1], A.shape[-1], 1)))

    @staticmethod
    def load(A: Tensor, out: Tensor, scale: float | Tensor) -> None:
        """Out ← scale · A, from (count, n, n) into the layout; a tensor scales each matrix by its own number."""
        torch.mul(A, scale[:, None, None] if isinstance(scale, Tensor) else scale, out=out)

    @staticmethod
    def store(X: Tensor, out: Tensor) -> None:
        """Out ← X, from the layout to (count, n, n); zero are the rows that X has not."""
        rows = X.shape[-2]
        if rows == out.shape[-2]:
            out.copy_(X)
        else:
            out[..., :rows, :].copy_(X)
            out[..., rows:, :].zero_()

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

    @classmethod
    def product_of_pairs(cls, X: Tensor, Y: Tensor, out: Tensor, added: bool = False) -> list[Call]:
        """The calls of out ← (X₀Y₀, X₁Y₀ + X₀Y₁), or of adding them: pairs lead with a dimension of two."""
        first = cls.added_product if added else cls.product
        return [*first(X[0], Y[0], out[0]), *cls.slope_of_product(X, Y, out, added)]

    @staticmethod
    def slope_of_product(X: Tensor, Y: Tensor, out: Tensor, added: bool = False) -> list[Call]:
        """Of :meth:`product_of_pairs` the second member."""
        first = BatchFirst.added_product if added else BatchFirst.product
        return [*first(X[1], Y[0], out[1]), *BatchFirst.added_product(X[0], Y[1], out[1])]

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


class BatchLast:
    """Matrices as (n, n, count): products are broadcasts over long rows."""

    dims = (0, 1)

    @staticmethod
    def empty(lead: tuple[int, ...], count: int, A: Tensor) -> Tensor:
        """Uninitialised (*lead, n, n, count)."""
        return A.new_empty((*lead, A.shape[-1], A.shape[-1], count))

    @staticmethod
    def load(A: Tensor, out: Tensor, scale: float | Tensor) -> None:
        """Out ← scale · A, from (count, n, n) into the layout; a tensor scales each matrix by its own number."""
        change_layout(A.permute(1, 2, 0), out, scale)

    @staticmethod
    def store(X: Tensor, out: Tensor) -> None:
        """Out ← X, from the layout to (count, n, n)."""
        out.copy_(BatchLast.matrices(X))

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


Layout = type[BatchFirst] | type[BatchLast]


def change_layout(A: Tensor, out: Tensor, scale: float | Tensor) -> None:
    """Out ← scale · A, whatever the strides of either.

    An element-wise operation on three dimensions or more is shared among threads and runs an entry a clock; of two
    dimensions torch would transpose in blocks on one thread.
    """
    if isinstance(scale, float) and scale == 1.0:
        out.copy_(A)
    else:
        torch.mul(A, scale, out=out)


def reals(X: Tensor) -> Tensor:
    """X as real numbers: where they are complex, with a last dimension for their two parts."""
    return torch.view_as_real(X) if X.is_complex() else X


def run(calls: Sequence[Call]) -> None:
    """One after another."""
    for call in calls:
        call()


def layout_for(n: int, count: int) -> Layout:
    """The faster layout for this size and number of matrices."""
    return BatchLast if n <= BATCH_LAST_N and count >= BATCH_LAST_COUNT else BatchFirst


def even_parts(count: int, most: int) -> int:
    """The largest of as few parts of a batch as possible, all of them of about the same length."""
    parts = -(-count // max(1, most))
    return -(-count // parts) if count else 1


def chunk_length(A: Tensor, count: int) -> int:
    """Matrices in a chunk."""
    room = CHUNK_BYTES * torch.get_num_threads() if A.is_cpu else GPU_CHUNK_BYTES
    return even_parts(count, room // (A.shape[-1] ** 2 * A.element_size()))


def multiply_dual(layout: Layout, X: Tensor, Y: Tensor, out: Tensor) -> None:
    """(X + ε dX)(Y + ε dY) = XY + ε (dX Y + X dY), for pairs with a leading dimension of two."""
    run(layout.product_of_pairs(X, Y, out))
