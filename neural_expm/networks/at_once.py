"""The torch operations of a small batch as calls with all bound that is the same in each.

What ``shortcut.py`` asks where no native kernel will come: of a lone matrix the route takes as long as the products.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels.complex_step import keeps_range
from ..kernels.eager import occupied_rows, worth_sparing
from ..kernels.exponential_kernel import Bound
from ..kernels.precision import full_precision
from ..kernels.tape import BorrowedTape, Form
from ..kernels.tape_layouts import tape_layout
from .plan import (
    FEW,
    FEW_SHARPER_N,
    LONE_SHARPER_N,
    SQUARE_FIRST_N,
    Groups,
    frobenius_norms,
    groups_of,
    plan_for,
)

if TYPE_CHECKING:
    from .exponential import EquivariantExponential


def bound_operations(network: EquivariantExponential, count: int, n: int) -> Bound:
    """The calls for ``count`` matrices n × n."""
    if n == 1:
        return Bound(lambda A, _: A.exp(), lambda A, E, _: A.exp() * E, network)
    ladder = network.ladder
    packed: dict[int, tuple[list[Tensor], float]] = {}  # for good: nobody changes a network that is settled

    def together(A: Tensor, levels: int) -> Tensor | None:
        """As ``value``, where one rung and one tape serve all, and neither a sharper bound nor zero rows are worth it.

        A fifth of the time of a thousand 3 × 3 goes into chunks, rows and layouts that there are not here.
        """
        flat = A.view(count, n, n)
        norms, (layout, length) = frobenius_norms(flat), tape_layout(flat, count, 1)
        extremes = norms.tolist() if count <= FEW else [float(norm) for norm in torch.aminmax(norms)]
        reached = [ladder.level(norm) for norm in extremes]
        level = max(reached)
        if length < count or not ladder.one_group(min(reached), level, count, n):
            return value(A, levels)
        rung, out = ladder.rungs[level], torch.empty_like(A)
        if level not in packed:
            packed[level] = network.packed(rung, A)
        (weights, identity), result = packed[level], out.view(count, n, n)
        form = Form(layout, count, n, n)
        with full_precision(A), BorrowedTape(flat, form, weights, identity, rung.squarings) as tape:
            layout.load(flat, tape.inputs[0], 2.0**-rung.squarings)
            place = layout.token_of(result)
            tape.replay(place=place)
            if place is None:
                layout.store(tape.result, result, keeps_range(A.dtype, rung.squarings))
        if levels:
            ctypes.memset(levels, level, count)
        return out

    def value(A: Tensor, levels: int) -> Tensor | None:
        flat = A.view(count, n, n)
        with full_precision(A):
            plan = plan_for(flat, ladder)
            if plan.reason is not None:
                return None
            out, occupied = torch.empty_like(A), occupied_rows(flat)
            for rung, rows in plan.by_group():
                network.compute(flat, None, rung, rows, out.view(flat.shape), plan.squares, occupied)
        if levels:
            of_row = plan.by_row()
            ctypes.memmove(levels, of_row.data_ptr(), count)
        return out

    def frechet(A: Tensor, E: Tensor, levels: int) -> Tensor:
        out, of_row = torch.empty_like(E), ctypes.string_at(levels, count)
        if of_row == of_row[:1] * count:
            groups: Groups = [(ladder.rungs[max(of_row[0], ladder.derivative_level)], None)]
        else:
            each = torch.frombuffer(bytearray(of_row), dtype=torch.uint8)
            groups = groups_of(each.clamp_min(ladder.derivative_level), n, ladder)
        flat, direction, result = (X if X.dim() == 3 else X.reshape(count, n, n) for X in (A, E, out))
        with full_precision(A):
            for rung, rows in groups:
                network.compute(flat, direction, rung, rows, result)
        return out

    sharper_from = LONE_SHARPER_N[0] if count == 1 else FEW_SHARPER_N if count <= FEW else SQUARE_FIRST_N
    return Bound(together if n < sharper_from and not worth_sparing(count, n) else value, frechet, network)
