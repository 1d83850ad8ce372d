"""The torch operations of a small batch as calls with all bound that is the same in each.

What ``shortcut.py`` asks where no native kernel will come: of a lone matrix the route takes as long as the products.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels.eager import occupied_rows
from ..kernels.exponential_kernel import Bound
from ..kernels.precision import full_precision
from .plan import plan_for

if TYPE_CHECKING:
    from .exponential import EquivariantExponential


def by_torch(network: EquivariantExponential, count: int) -> Bound:
    """The calls for ``count`` matrices."""
    ladder = network.ladder

    def value(A: Tensor, levels: int) -> Tensor | None:
        flat = A.view(count, *A.shape[-2:])
        with full_precision(A):
            plan = plan_for(flat, ladder)
            if plan.reason is not None:
                return None
            out, occupied = torch.empty_like(A), occupied_rows(flat)
            for rung, rows in plan.by_group():
                network.by_torch(flat, None, rung, rows, out.view(flat.shape), plan.squares, occupied)
        if levels:
            of_row = plan.by_row()
            ctypes.memmove(levels, of_row.data_ptr(), count)
        return out

    def frechet(A: Tensor, E: Tensor, levels: int) -> Tensor:
        of_row = (ctypes.c_uint8 * count).from_address(levels)
        used = sorted({max(level, ladder.derivative_level) for level in set(of_row)})
        out = torch.empty_like(E)
        flat, direction, result = (X.reshape(count, *X.shape[-2:]) for X in (A, E, out))
        with full_precision(A):
            for level in used:
                rows = None
                if len(used) > 1:
                    each = torch.frombuffer(of_row, dtype=torch.uint8).clamp_min(used[0])
                    rows = torch.nonzero(each == level)[:, 0]
                network.by_torch(flat, direction, ladder.rungs[level], rows, result)
        return out

    return Bound(value, frechet, network)
