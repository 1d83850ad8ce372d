"""A polynomial with its squarings as a list of torch calls with their tensors bound, replayed for chunk after chunk.

On a chunk that fits the cache a torch call computes for a few microseconds, and making the views that it works on costs
as much.  A tape makes them once for a (network, size, count); a thread keeps its last tapes, which share one piece of
memory, because a thread replays one at a time.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor

from .layout import Call, run
from .tape_layouts import Outer, TapeLayout

KEPT = 16  # tapes of a thread
KEPT_BYTES = 1 << 24  # and the largest piece of memory that they share


def rows(X: Tensor) -> Tensor:
    """The tokens (lanes, tokens, …) as rows of a real matrix for each lane, without a copy."""
    return (torch.view_as_real(X) if X.is_complex() else X).view(*X.shape[:2], -1)


def combination(weights: Tensor, tokens: Tensor, out: Tensor) -> Call:
    """The call of out ← weights · tokens in every lane; a lane stays with one thread."""
    lanes = tokens.shape[0]
    if lanes == 1:
        return partial(torch.mm, weights, tokens[0], out=out[0])
    return partial(torch.bmm, weights.expand(lanes, *weights.shape), tokens, out=out)


class Tape:
    """p(A/2^s)^(2^s), or its Fréchet derivative beside it, for ``count`` matrices.

    Args:
        layout: of the tokens.
        n, count: size and number of the matrices.
        weights, identity, squarings: of the network, as for ``eager.exponential``.
        members: 1 for the value; 2 for the value and its derivative, a leading dimension of every token.
        memory: uninitialised, ``size(…)`` entries of the dtype.

    Attributes:
        inputs: where A/2^s goes, and then either its direction, or A²/4^s if that is known.
        result: the value, or the derivative, once :meth:`replay` is done.
    """

    def __init__(
        self,
        layout: TapeLayout,
        n: int,
        count: int,
        weights: list[Tensor],
        identity: float,
        squarings: int,
        members: int,
        memory: Tensor,
    ) -> None:
        lane, lanes = layout.shape(count, n, members), layout.lanes
        entries, made = math.prod(lane), lanes * (len(weights) + 1)
        stream = memory[: made * entries].view(lanes, -1, *lane)
        rest = memory[made * entries : (made + 2 * lanes) * entries]
        pair = rest.view(lanes, 2, *lane)
        if isinstance(layout, Outer):
            start = (made + 2 * lanes) * entries
            layout = Outer(memory[start : start + layout.terms(count, n, members)])
        multiply = layout.product_of_pairs if members == 2 else layout.product
        tokens = [layout.token(X) for X in stream.unbind(1)]
        self.inputs = layout.parts(tokens[0]) if members == 2 else (tokens[0], tokens[1])
        self.square: list[Call] = multiply(tokens[0], tokens[0], tokens[1])
        self.calls: list[Call] = []
        flat, pair_flat = rows(stream), rows(pair)
        scores, values = (layout.token(X) for X in pair.unbind(1))
        for h, head in enumerate(weights[:-1], start=2):
            self.calls.append(combination(head, flat[:, :h], pair_flat))
            self.calls += multiply(scores, values, tokens[h])
        now, spare = (layout.token(X) for X in rest.view(2, lanes, *lane).unbind())
        self.calls.append(combination(weights[-1], flat, rows(rest.view(2, lanes, 1, *lane)[0])))
        value = layout.parts(now)[0] if members == 2 else now
        self.calls.append(partial(layout.diagonal(value).add_, identity))
        for _ in range(squarings):
            self.calls += multiply(now, now, spare)
            now, spare = spare, now
        self.result = layout.parts(now)[1] if members == 2 else now

    @staticmethod
    def size(layout: TapeLayout, n: int, count: int, weights: list[Tensor], members: int) -> int:
        """Entries of memory: the tokens, the scores and values of a head, and room for a product."""
        room = layout.terms(count, n, members) if isinstance(layout, Outer) else 0
        return (len(weights) + 3) * members * count * n * n + room

    def replay(self, square_known: bool = False) -> None:
        """Compute the result from :attr:`inputs`."""
        if not square_known:
            run(self.square)
        run(self.calls)


class _Kept(threading.local):
    """The tapes and the memory of one thread."""

    def __init__(self) -> None:
        self.tapes: OrderedDict[tuple, tuple[Tape, list[Tensor]]] = OrderedDict()
        self.memory: dict[torch.dtype, Tensor] = {}


_kept = _Kept()


def tape_for(
    A: Tensor,
    layout: TapeLayout,
    count: int,
    weights: list[Tensor],
    identity: float,
    squarings: int,
    members: int,
) -> Tape:
    """A tape for ``count`` matrices like those of A, (batch, n, n); made anew where it is not kept.

    Nothing is kept on a GPU, where two streams of one thread may run side by side.
    """
    n, size = A.shape[-1], Tape.size(layout, A.shape[-1], count, weights, members)
    make = partial(Tape, layout, n, count, weights, identity, squarings, members)
    if A.device.type != "cpu" or type(A) is not Tensor or size * A.element_size() > KEPT_BYTES:
        return make(A.new_empty(size))
    # The tape keeps the list of weights alive, so that its id names no other one.
    key = (A.dtype, layout, n, count, id(weights), squarings, members)
    found = _kept.tapes.get(key)
    if found is None:
        # What is made in inference mode could not be written to outside it.
        with torch.inference_mode(False):
            _kept.tapes[key] = found = make(_memory(A.dtype, size)), weights
        while len(_kept.tapes) > KEPT:
            _kept.tapes.popitem(last=False)
    _kept.tapes.move_to_end(key)
    return found[0]


def _memory(dtype: torch.dtype, size: int) -> Tensor:
    """At least so many entries, shared by the tapes of this thread; those on a smaller piece are dropped with it."""
    memory = _kept.memory.get(dtype)
    if memory is None or memory.numel() < size:
        for key in [key for key in _kept.tapes if key[0] == dtype]:
            del _kept.tapes[key]
        del memory  # given back before the larger piece is taken
        _kept.memory.pop(dtype, None)
        _kept.memory[dtype] = memory = torch.empty(size, dtype=dtype, device="cpu")
    return memory
