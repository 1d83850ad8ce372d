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

from .lanes import Lanes, Outer
from .layout import Call, reals, run
from .tape_layouts import Adjoint, TapeLayout

KEPT = 16  # tapes of a thread
KEPT_BYTES = 1 << 24  # and the largest piece of memory that they share
# With these neither e^{−‖A‖} nor e^{‖A‖} comes near the ends of the range; a norm is at most some six times two to
# their power.
MOST_SQUARINGS = {torch.float32: 3, torch.float64: 6}


def keeps_range(dtype: torch.dtype, squarings: int) -> bool:
    """Whether neither e^{‖A‖} nor e^{−‖A‖} comes near the ends of the range of a real dtype; no for a complex one."""
    return squarings <= MOST_SQUARINGS.get(dtype, -1)


def rows(X: Tensor) -> Tensor:
    """The tokens (leads, tokens, …) as rows of a real matrix for each lead, without a copy."""
    return reals(X).view(*X.shape[:2], -1)


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
    def members_lead(self) -> bool:
        """Whether these parts are the members of a pair."""
        return self.members == self.leads == 2 and not (
            isinstance(self.layout, Lanes) and self.layout.lanes > 1
        )

    @property
    def lead(self) -> tuple[int, ...]:
        """The shape of what one of them has of a token."""
        return self.layout.shape(self.matrices, self.rows, self.n, self.members)

    @property
    def entries(self) -> int:
        """Of a token."""
        return self.leads * math.prod(self.lead)

    def tokens(self, products: int) -> int:
        """How many the stream has: the product of the last head is not one where it is added to the read-out."""
        return max(2, products if self.layout.adds_products else products + 1)

    @property
    def beside(self) -> int:
        """How many lie beside it: the scores and values of a head, and the read-out that their product is added to."""
        return 3 if self.layout.adds_products else 2

    def size(self, products: int) -> int:
        """Entries of memory: the stream, what lies beside it, and room for the terms of a product."""
        layout = self.layout
        room = layout.terms(self.matrices, self.n, self.members) if isinstance(layout, Outer) else 0
        return (self.tokens(products) + self.beside) * self.entries + room


class Recording:
    """What is on a tape: p(A/2^s)^(2^s), or its Fréchet derivative beside it.

    Args:
        form: what it works on.
        weights, identity, squarings: of the network, as for ``eager.exponential``.
        dtype: of the tokens.
    """

    __slots__ = ("dtype", "finite", "form", "identity", "key", "squarings", "weights")

    def __init__(
        self, form: Form, weights: list[Tensor], identity: float, squarings: int, dtype: torch.dtype
    ) -> None:
        self.form, self.weights, self.identity, self.squarings = form, weights, identity, squarings
        self.dtype = dtype
        self.finite = form.members == 1 and keeps_range(dtype, squarings)
        # Whoever keeps the key has to keep the weights, so that their id names no others.
        self.key = dtype, form, id(weights), squarings

    @property
    def size(self) -> int:
        """Entries of memory."""
        return self.form.size(len(self.weights))


class Tape:
    """A recording in memory of its own.

    Args:
        recording: what to compute.
        memory: uninitialised, ``recording.size`` entries of its dtype.

    Attributes:
        inputs: where A/2^s goes, and then either its direction, or A²/4^s if that is known.
        result: the value, or the derivative, once :meth:`replay` is done and was given no other place.
    """

    def __init__(self, recording: Recording, memory: Tensor) -> None:
        form, squarings = recording.form, recording.squarings
        self._recording, self._layout, self._dual = recording, form.layout, form.members == 2
        tokens, entries = form.tokens(len(recording.weights)), form.entries
        stream = memory[: tokens * entries].view(form.leads, tokens, *form.lead)
        self._rest = memory[tokens * entries : recording.size]
        if isinstance(form.layout, Outer):
            self._layout = Outer(self._rest[form.beside * entries :])
        self._flat, self._tokens = rows(stream), self._tokens_of(stream)
        # As a tensor, which no call has to make of a number again.
        self._identity = torch.full((), recording.identity, dtype=memory.dtype, device=memory.device)
        A = self._tokens[0]
        self.inputs = self._layout.parts(A) if self._dual else (A, self._tokens[1])
        self._square = self._multiply(A, A, self._tokens[1])
        if self._layout.adds_products:
            spare, _, now = self._tokens_of(self._beside(3))
        else:
            now, spare = (self._layout.token(X) for X in self._beside(2).view(2, form.leads, *form.lead))
        self._calls, squared = self._heads(), None
        for step in range(squarings):
            self._calls += self._last(squared, now)
            squared = now, recording.identity ** (2**step)
            now, spare = spare, now
        # Nothing here holds the tape itself: its memory has to go with the last that plays it.
        self._squared_last, self._ending = squared, self._last(squared, now, ends=True)
        self.result = self._layout.parts(now)[1] if self._dual else now
        self._norms: dict[int, tuple[list[Call], Tensor]] = {}
        # Made when they are asked for.
        self._loads: list[Callable[[Tensor], object]] | None = None
        self._store: Callable[[Tensor], object] | None = None

    # --- making the calls ------------------------------------------------------------------------------------------

    def _beside(self, count: int) -> Tensor:
        """Room for so many tokens beside the stream, the same for any number."""
        form = self._recording.form
        return self._rest[: count * form.entries].view(form.leads, count, *form.lead)

    def _tokens_of(self, X: Tensor) -> list[Tensor]:
        return [self._layout.token(each) for each in X.unbind(1)]

    def _multiply(
        self, X: Tensor, Y: Tensor, place: Tensor, added: bool = False, ends: bool = False
    ) -> list[Call]:
        """Of pairs, where nothing comes after, the derivative alone."""
        layout, form = self._layout, self._recording.form
        if self._dual:
            return (layout.slope_of_product if ends else layout.product_of_pairs)(X, Y, place, added)
        left = X if form.rows == form.n else layout.columns(X, 0, form.rows)
        return (layout.added_product if added else layout.product)(left, Y, place)

    def _heads(self) -> list[Call]:
        """All of them, but the last one where its product is added to the read-out."""
        recording, flat, pair = self._recording, self._flat, self._beside(2)
        (scores, values), made = self._tokens_of(pair), len(self._tokens)
        calls: list[Call] = []
        for h, head in enumerate(recording.weights[: made - 2], start=2):
            ends = not self._layout.adds_products and not recording.squarings and h == made - 1
            calls.append(combination(head, flat[:, :h], rows(pair)))
            calls += self._multiply(scores, values, self._tokens[h], ends=ends)
        return calls

    def _last(self, squared: tuple[Tensor, float] | None, place: Tensor, ends: bool = False) -> list[Call]:
        """The read-out, or the square of what is given."""
        return self._read_out(place, ends) if squared is None else self._squared(*squared, place, ends)

    def _read_out(self, place: Tensor, ends: bool = False) -> list[Call]:
        form, layout, flat = self._recording.form, self._layout, self._flat
        (*heads, readout), only_slope = self._recording.weights, ends and self._dual
        value = layout.parts(place)[0] if self._dual else place
        plus_identity = [] if only_slope else [partial(layout.diagonal(value).add_, self._identity)]
        if not layout.adds_products:
            first = 1 if only_slope and form.members_lead else 0
            target = rows(place.view(form.leads, 1, *form.lead))
            return [combination(readout, flat[first:], target[first:]), *plus_identity]
        if not heads:
            linear, quadratic = readout[0].unbind()
            begun = partial(torch.mul, self._tokens[0], linear, out=place)
            return [begun, partial(place.addcmul_, self._tokens[1], quadratic), *plus_identity]
        # The product of the last head is added to what is read out of the tokens before it, together with its factors.
        last, three = heads[-1], self._beside(3)
        weights = torch.cat([readout[:, -1:] * last[:1], last[1:], readout[:, :-1]])
        scores, values, _ = self._tokens_of(three)
        product = self._multiply(scores, values, place, added=True, ends=ends)
        # The identity comes last: what is added to it has then been added up to all its digits.
        return [combination(weights, flat, rows(three)), *product, *plus_identity]

    def _squared(self, X: Tensor, below: float, place: Tensor, ends: bool = False) -> list[Call]:
        layout, form = self._layout, self._recording.form
        calls = self._multiply(X, X, place, ends=ends)
        if form.rows < form.n:  # what the rows below, those of the identity, have to do with
            old, new = (layout.columns(T, form.rows, form.n) for T in (X, place))
            calls.append(partial(new.add_, old, alpha=below))
        return calls

    # --- using it --------------------------------------------------------------------------------------------------

    def load(self, A: Tensor, E: Tensor | None = None) -> None:
        """:attr:`inputs` ← A/2^s and E/2^s, from (count, n, n)."""
        if self._loads is None:
            scale = 2.0**-self._recording.squarings
            self._loads = [self._layout.loading(each, scale) for each in self.inputs]
        self._loads[0](A.mT if self._layout is Adjoint else A)
        if E is not None:
            self._loads[1](E)

    def norms(self) -> Tensor:
        """‖A/2^s‖_F² of the matrices that were loaded, in any order, some of them twice; of a tape for values."""
        return self._norms_of(0)

    def norms_of_squares(self) -> Tensor:
        """The same of (A/2^s)², which is known then."""
        run(self._square)
        return self._norms_of(1)

    def _norms_of(self, token: int) -> Tensor:
        if token not in self._norms:
            # What is made in inference mode could not be written to outside it.
            with torch.inference_mode(False):
                scratch = self._layout.token(self._beside(1)[:, 0])
                self._norms[token] = self._layout.squared_norms(self._tokens[token], scratch)
        calls, norms = self._norms[token]
        run(calls)
        return norms

    def replay(self, square_known: bool = False, out: Tensor | None = None) -> None:
        """Compute :attr:`result` from :attr:`inputs`, or, if given, ``out``, contiguous (count, n, n)."""
        if not square_known:
            run(self._square)
        run(self._calls)
        # A read-out that products are added to is begun in one place.
        movable = self._recording.squarings > 0 or not self._layout.adds_products
        place = self._layout.token_of(out) if out is not None and movable and not self._dual else None
        run(self._ending if place is None else self._last(self._squared_last, place))
        if out is not None and place is None:
            self.store(out)

    def store(self, out: Tensor) -> None:
        """Out ← the result, contiguous (count, n, n); zero are rows that were not computed."""
        if self._store is None:
            form, finite = self._recording.form, self._recording.finite
            self._store = self._layout.storing(self.result, form.matrices, form.n, finite)
        self._store(out)


class _Kept(threading.local):
    """The tapes and the memory of one thread, and whether one of them is in use."""

    def __init__(self) -> None:
        self.tapes: OrderedDict[tuple, Tape] = OrderedDict()
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self.lent = False


_kept = _Kept()


class BorrowedTape:
    """A tape for matrices like those of A, (batch, n, n), in their dtype or another; made anew where it is not kept.

    Nothing is kept on a GPU, where two streams of one thread may run side by side, nor for whoever computes while
    another is at it in the same thread: a signal handler, or a mode of torch's.

    A context manager; as a generator it would cost as much as a call of torch.
    """

    __slots__ = ("_A", "_lent", "_recording")

    def __init__(self, A: Tensor, recording: Recording) -> None:
        self._A, self._recording, self._lent = A, recording, False

    def __enter__(self) -> Tape:
        A = self._A
        if _kept.lent or not A.is_cpu or type(A) is not Tensor:
            return self._made()
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
        recording, tapes = self._recording, _kept.tapes
        kept = tapes.get(recording.key)
        if kept is not None:
            tapes.move_to_end(recording.key)
            return kept
        if recording.size * recording.dtype.itemsize > KEPT_BYTES:
            return self._made()
        # What is made in inference mode could not be written to outside it.
        with torch.inference_mode(False):
            tape = tapes[recording.key] = Tape(recording, _memory(recording.dtype, recording.size))
        while len(tapes) > KEPT:
            tapes.popitem(last=False)
        return tape

    def _made(self) -> Tape:
        recording = self._recording
        return Tape(recording, self._A.new_empty(recording.size, dtype=recording.dtype))


def _memory(dtype: torch.dtype, size: int) -> Tensor:
    """At least so many entries, shared by the tapes of this thread; those on a smaller piece are dropped with it."""
    needed = size * dtype.itemsize
    if _kept.memory.numel() < needed:
        _kept.tapes.clear()
        _kept.memory = _kept.memory[:0].clone()  # given back before the larger piece is taken
        _kept.memory = torch.empty(needed, dtype=torch.uint8, device="cpu")
    return _kept.memory[:needed].view(dtype)
