"""A polynomial with its squarings as a list of torch calls with their tensors bound, replayed for chunk after chunk.

On a chunk that fits the cache a torch call computes for a few microseconds, and making the views that it works on costs
as much.  A tape makes them once for a (network, size, count); a thread keeps its last tapes, which share one piece of
memory and are lent to one user at a time.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .layout import Call, run
from .tape_layouts import Outer, TapeLayout

KEPT = 16  # tapes of a thread
KEPT_BYTES = 1 << 24  # and the largest piece of memory that they share


def rows(X: Tensor) -> Tensor:
    """The tokens (leads, tokens, …) as rows of a real matrix for each lead, without a copy."""
    return (torch.view_as_real(X) if X.is_complex() else X).view(*X.shape[:2], -1)


def combination(weights: Tensor, tokens: Tensor, out: Tensor) -> Call:
    """The call of out ← weights · tokens in every lead; a lead stays with one thread."""
    leads = tokens.shape[0]
    if leads == 1:
        return partial(torch.mm, weights, tokens[0], out=out[0])
    return partial(torch.bmm, weights.expand(leads, *weights.shape), tokens, out=out)


class Form(NamedTuple):
    """What a tape works on.

    Attributes:
        layout: of the tokens.
        matrices, n: number and size of them.
        rows: the first so many are computed; below they are zero in A, and those of the identity times p(0) in p(A).
        members: 1 for the value; 2 for the value and its derivative, two of every token.
    """

    layout: TapeLayout
    matrices: int
    n: int
    rows: int
    members: int = 1

    @property
    def leads(self) -> int:
        """In how many equal parts memory is, which are combined side by side."""
        return self.layout.leads(self.members)

    @property
    def lead(self) -> tuple[int, ...]:
        """The shape of what one of them has of a token."""
        return self.layout.shape(self.matrices, self.rows, self.n, self.members)

    def size(self, heads: int) -> int:
        """Entries of memory: the tokens, the scores and values of a head, and room for a product."""
        layout = self.layout
        room = layout.terms(self.matrices, self.n, self.members) if isinstance(layout, Outer) else 0
        return (heads + 4) * self.leads * math.prod(self.lead) + room


class Tape:
    """p(A/2^s)^(2^s), or its Fréchet derivative beside it.

    Args:
        weights, identity, squarings: of the network, as for ``eager.exponential``.
        memory: uninitialised, ``form.size(…)`` entries of the dtype.

    Attributes:
        inputs: where A/2^s goes, and then either its direction, or A²/4^s if that is known.
        result: the value, or the derivative, once :meth:`replay` is done and was given no other place.
    """

    def __init__(
        self, form: Form, weights: list[Tensor], identity: float, squarings: int, memory: Tensor
    ) -> None:
        layout, lead, leads, dual = form.layout, form.lead, form.leads, form.members == 2
        entries, made = math.prod(lead), leads * (len(weights) + 1)
        stream = memory[: made * entries].view(leads, -1, *lead)
        rest = memory[made * entries : (made + 2 * leads) * entries]
        pair = rest.view(leads, 2, *lead)
        if isinstance(layout, Outer):
            layout = Outer(memory[(made + 2 * leads) * entries : form.size(len(weights) - 1)])

        def multiply(X: Tensor, Y: Tensor, place: Tensor) -> list[Call]:
            if dual:
                return layout.product_of_pairs(X, Y, place)
            return layout.product(X if form.rows == form.n else layout.columns(X, 0, form.rows), Y, place)

        tokens = [layout.token(X) for X in stream.unbind(1)]
        self.inputs = layout.parts(tokens[0]) if dual else (tokens[0], tokens[1])
        self.square: list[Call] = multiply(tokens[0], tokens[0], tokens[1])
        self.calls: list[Call] = []
        flat, pair_flat = rows(stream), rows(pair)
        scores, values = (layout.token(X) for X in pair.unbind(1))
        for h, head in enumerate(weights[:-1], start=2):
            self.calls.append(combination(head, flat[:, :h], pair_flat))
            self.calls += multiply(scores, values, tokens[h])
        # As a tensor, which no call has to make of a number again.
        one = torch.full((), identity, dtype=memory.dtype.to_real(), device=memory.device)
        now, spare = (layout.token(X) for X in rest.view(2, leads, *lead).unbind())

        def read_out(place: Tensor) -> list[Call]:
            value = layout.parts(place)[0] if dual else place
            total = combination(weights[-1], flat, rows(place.view(leads, 1, *lead)))
            return [total, partial(layout.diagonal(value).add_, one)]

        def square(X: Tensor, below: float, place: Tensor) -> list[Call]:
            calls = multiply(X, X, place)
            if form.rows < form.n:  # what the rows below, those of the identity, have to do with
                old, new = (layout.columns(T, form.rows, form.n) for T in (X, place))
                calls.append(partial(new.add_, old, alpha=below))
            return calls

        last: Callable[[Tensor], list[Call]] = read_out
        for step in range(squarings):
            self.calls += last(now)
            last = partial(square, now, identity ** (2**step))
            now, spare = spare, now
        self._last, self._ending = last, last(now)
        self.result = layout.parts(now)[1] if dual else now

    def replay(self, square_known: bool = False, place: Tensor | None = None) -> None:
        """Compute the result from :attr:`inputs`, into another token if one is given."""
        if not square_known:
            run(self.square)
        run(self.calls)
        run(self._ending if place is None else self._last(place))


class _Kept(threading.local):
    """The tapes and the memory of one thread, and whether one of them is in use."""

    def __init__(self) -> None:
        self.tapes: OrderedDict[tuple, tuple[Tape, list[Tensor]]] = OrderedDict()
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self.lent = False


_kept = _Kept()


class BorrowedTape:
    """A tape for matrices like those of A, (batch, n, n), in their dtype or another; made anew where it is not kept.

    Nothing is kept on a GPU, where two streams of one thread may run side by side, nor for whoever computes while
    another is at it in the same thread: a signal handler, or a mode of torch's.

    A context manager; as a generator it would cost as much as a call of torch.
    """

    __slots__ = ("_arguments", "_lent")

    def __init__(
        self,
        A: Tensor,
        form: Form,
        weights: list[Tensor],
        identity: float,
        squarings: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._arguments = A, form, weights, identity, squarings, dtype or A.dtype
        self._lent = False

    def __enter__(self) -> Tape:
        A, form, weights, _, _, dtype = self._arguments
        if _kept.lent or not A.is_cpu or type(A) is not Tensor:
            return self._made(A.new_empty(form.size(len(weights) - 1), dtype=dtype))
        _kept.lent = self._lent = True
        try:
            return self._found()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._lent:
            _kept.lent = False

    def _found(self) -> Tape:
        """The tape that is kept, or a new one."""
        A, form, weights, _, squarings, dtype = self._arguments
        # The tape keeps the list of weights alive, so that its id names no other one.
        key, tapes = (dtype, form, id(weights), squarings), _kept.tapes
        if key in tapes:
            tapes.move_to_end(key)
            return tapes[key][0]
        size = form.size(len(weights) - 1)
        if size * dtype.itemsize > KEPT_BYTES:
            return self._made(A.new_empty(size, dtype=dtype))
        # What is made in inference mode could not be written to outside it.
        with torch.inference_mode(False):
            tapes[key] = self._made(_memory(dtype, size)), weights
        while len(tapes) > KEPT:
            tapes.popitem(last=False)
        return tapes[key][0]

    def _made(self, memory: Tensor) -> Tape:
        _, form, weights, identity, squarings, _ = self._arguments
        return Tape(form, weights, identity, squarings, memory)


def _memory(dtype: torch.dtype, size: int) -> Tensor:
    """At least so many entries, shared by the tapes of this thread; those on a smaller piece are dropped with it."""
    needed = size * dtype.itemsize
    if _kept.memory.numel() < needed:
        _kept.tapes.clear()
        _kept.memory = _kept.memory[:0].clone()  # given back before the larger piece is taken
        _kept.memory = torch.empty(needed, dtype=torch.uint8, device="cpu")
    return _kept.memory[:needed].view(dtype)
