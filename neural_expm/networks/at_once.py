"""The torch operations of a small batch as calls with all bound that is the same in each.

What ``shortcut.py`` asks where no native kernel will come: of a lone matrix the route takes as long as the products.
"""

from __future__ import annotations

import ctypes
import math
from bisect import bisect_left
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels import complex_step
from ..kernels.eager import occupied_rows, worth_sparing
from ..kernels.exponential_kernel import Bound
from ..kernels.precision import full_precision
from ..kernels.tape import BorrowedTape, Form, Recording, Tape
from ..kernels.tape_layouts import tape_layout
from .ladder import GROUP_COST, MAJORANT_RATIO, product_cost
from .plan import (
    FEW,
    FEW_SHARPER_N,
    LONE_SHARPER_N,
    SQUARE_FIRST_N,
    Groups,
    groups_of,
    plan_for,
)

if TYPE_CHECKING:
    from .exponential import EquivariantExponential

# Nanoseconds of products that norms of A² are worth (see ``ladder.py``).
SHARPER_COST = 40_000.0
TRIES = 3  # rungs that a batch is loaded for: one is expected, the next is that of its norms


def bound_operations(network: EquivariantExponential, count: int, n: int) -> Bound:
    """The calls for ``count`` matrices n × n."""
    if n == 1:
        return Bound(lambda A, _: A.exp(), lambda A, E, _: A.exp() * E, network)
    sharper_from = LONE_SHARPER_N[0] if count == 1 else FEW_SHARPER_N if count <= FEW else SQUARE_FIRST_N
    # Where neither a sharper bound for each nor zero rows are worth looking for.
    small = n < sharper_from or (count > 1 and count * product_cost(n) <= GROUP_COST)
    kind = _Together if small and not worth_sparing(count, n) else _InGroups
    operations = kind(network, count, n)
    return Bound(operations.value, operations.frechet, network)


class _InGroups:
    """Each rung for its own rows, as ``plan.py`` says."""

    def __init__(self, network: EquivariantExponential, count: int, n: int) -> None:
        self.network, self.ladder, self.shape = network, network.ladder, (count, n, n)

    def value(self, A: Tensor, levels: int) -> Tensor | None:
        """As :attr:`Bound.value`."""
        flat = A.view(self.shape)
        with full_precision(A):
            plan = plan_for(flat, self.ladder)
            if plan.reason is not None:
                return None
            out, occupied = torch.empty_like(A), occupied_rows(flat)
            for rung, rows in plan.by_group():
                self.network.compute(flat, None, rung, rows, out.view(flat.shape), plan.squares, occupied)
        if levels:
            of_row = plan.by_row()
            ctypes.memmove(levels, of_row.data_ptr(), len(of_row))
        return out

    def frechet(self, A: Tensor, E: Tensor, levels: int) -> Tensor:
        """As :attr:`Bound.frechet`."""
        out, (count, n, _), ladder = torch.empty_like(E), self.shape, self.ladder
        of_row = ctypes.string_at(levels, count)
        if of_row == of_row[:1] * count:
            groups: Groups = [(ladder.rungs[max(of_row[0], ladder.derivative_level)], None)]
        else:
            each = torch.frombuffer(bytearray(of_row), dtype=torch.uint8)
            groups = groups_of(each.clamp_min(ladder.derivative_level), n, ladder)
        flat, direction, result = (X if X.dim() == 3 else X.reshape(self.shape) for X in (A, E, out))
        with full_precision(A):
            for rung, rows in groups:
                self.network.compute(flat, direction, rung, rows, result)
        return out


class _Together(_InGroups):
    """One rung and one tape for all of a batch that fits a chunk.

    Between other work of a program each kind of operation that has not been used for a while takes ten times as long as
    what it computes for a thousand 3 × 3.  Here are as few kinds as can be: even the norms are products, of what the
    tape has loaded for the rung that served the last batch.
    """

    def __init__(self, network: EquivariantExponential, count: int, n: int) -> None:
        super().__init__(network, count, n)
        # Whether all matrices are computed by a rung, however small some of them are.
        self.for_all = [
            count == 1 or self.ladder.one_group(0, i, count, n) for i in range(len(self.ladder.rungs))
        ]
        # Norms of A² cost less than what they may save; a lone matrix repays only those of its own size.
        self.sharper = (count > 1 and n >= FEW_SHARPER_N) or count * product_cost(n) >= SHARPER_COST
        self.expected = 0  # the rung
        # For good: nobody changes a network that is settled.
        self.recordings: dict[tuple[int, int, int, bool], Recording | None] = {}

    def value(self, A: Tensor, levels: int) -> Tensor | None:
        """As :attr:`Bound.value`."""
        flat, level = A if A.dim() == 3 else A.view(self.shape), self.expected
        with full_precision(A):
            for _ in range(TRIES):
                if (recording := self._recording(flat, level)) is None:
                    break
                with BorrowedTape(flat, recording) as tape:
                    tape.load(flat)
                    assumed, (level, squared) = level, self._level(tape, 2.0**recording.squarings)
                    if level == assumed:
                        out = torch.empty_like(A)
                        tape.replay(squared, out if out.dim() == 3 else out.view(self.shape))
                        self.expected = level
                        if levels:
                            ctypes.memset(levels, level, len(flat))
                        return out
        return super().value(A, levels)

    def frechet(self, A: Tensor, E: Tensor, levels: int) -> Tensor:
        """As :attr:`Bound.frechet`."""
        of_row = ctypes.string_at(levels, self.shape[0])
        if of_row == of_row[:1] * self.shape[0]:
            flat, direction = (X if X.dim() == 3 else X.reshape(self.shape) for X in (A, E))
            recording = self._recording(flat, max(of_row[0], self.ladder.derivative_level), members=2)
            if recording is not None:
                out = torch.empty_like(E)
                with full_precision(A), BorrowedTape(flat, recording) as tape:
                    tape.load(flat, direction)
                    tape.replay(out=out if out.dim() == 3 else out.view(self.shape))
                return out
        return super().frechet(A, E, levels)

    def _recording(self, A: Tensor, level: int, members: int = 1) -> Recording | None:
        """What serves all matrices; None where one is outside, or where they do not fit one chunk."""
        key = torch.get_num_threads(), level, members, A.is_contiguous()
        if key not in self.recordings:
            self.recordings[key] = self._recorded(A, level, members)
        return self.recordings[key]

    def _recorded(self, A: Tensor, level: int, members: int) -> Recording | None:
        (count, n, _), rungs = self.shape, self.ladder.rungs
        layout, length = tape_layout(A, count, members)
        if level == len(rungs) or length < count:
            return None
        squarings, (weights, identity) = rungs[level].squarings, self.network.packed(rungs[level], A)
        if members == 2 and complex_step.suits(A, count, squarings):
            return None
        return Recording(Form(layout, count, n, n, members), weights, identity, squarings, A.dtype)

    def _level(self, tape: Tape, factor: float) -> tuple[int, bool]:
        """The rung for all matrices, of which a tape has loaded 1/factor, and whether the tape has squared them for it.

        The number of rungs where one is outside, or where a second rung is worth it.
        """
        ladder, (count, n, _), norms = self.ladder, self.shape, tape.norms()
        largest = math.sqrt((norms if count == 1 else norms.max()).item()) * factor
        level = ladder.level(largest)
        # Derivatives of lesser levels are computed at that one anyway.
        if squared := self.sharper and level > ladder.derivative_level:
            of_squares = tape.norms_of_squares()
            least, root = (
                math.sqrt(math.sqrt(x.item())) * factor for x in (of_squares.min(), of_squares.max())
            )
            if largest <= MAJORANT_RATIO * least:
                level = min(level, bisect_left(ladder.majorant_radii, root))
        if level < len(ladder.rungs) and not self.for_all[level]:
            lowest = ladder.level(math.sqrt(norms.min().item()) * factor)
            if lowest < level and not ladder.one_group(lowest, level, count, n):
                return len(ladder.rungs), squared
        return level, squared
