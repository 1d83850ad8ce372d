"""Which rung of a ladder each matrix gets, and what a report says of it."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..domain import Reason, frobenius_norm, norm_bound
from .ladder import MAJORANT_RATIO, Ladder, Rung, after_squaring

# From this n on A² is formed before the depth is chosen: its norm is a sharper guide, and the product is needed anyway.
# Below, the Frobenius norm alone is the guide: a sharper bound costs more than the product that it saves.
SQUARE_FIRST_N = 16
# For one matrix a call costs as much as a small product: below this n the Frobenius norm has to do.
SINGLE_SHARPER_N = 64


@dataclass
class Plan:
    """Who computes what, and what the report says: groups of rows with one rung each, or the rung of every row.

    The eager and the assembled kernel compute group by group; the compiled one sorts rows by itself and hands back
    ``levels``.
    """

    groups: list[tuple[Rung, Tensor | None]] | None
    levels: Tensor | None  # index of each row's rung, their number for rows outside; where there are no groups
    ladder: Ladder
    batch: int
    device: torch.device
    reason: Tensor | None = None  # None: every matrix is inside
    squares: Tensor | None = None
    kernel: str = "eager"  # which one the plan was made for
    details: dict[str, Tensor] = field(default_factory=dict)

    def describe(self) -> dict[str, Tensor]:
        """``bound``, ``products`` and ``squarings`` of each matrix, as computed (after merging of groups)."""
        if not self.details:
            bound = torch.full((self.batch,), torch.nan, dtype=torch.float64, device=self.device)
            products = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
            squarings = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
            for rung, rows in self.by_group():
                at = slice(None) if rows is None else rows
                bound[at], products[at], squarings[at] = rung.bound, rung.products, rung.squarings
            self.details = {"bound": bound, "products": products, "squarings": squarings}
        return self.details

    def by_group(self) -> list[tuple[Rung, Tensor | None]]:
        """The rows of each rung."""
        if self.groups is None:
            rungs, levels = self.ladder.rungs, self.by_row()
            used = [level for level in levels.unique().tolist() if level < len(rungs)]
            self.groups = [(rungs[level], torch.nonzero(levels == level)[:, 0]) for level in used]
        return self.groups

    def by_row(self) -> Tensor:
        """The rung of each row."""
        if self.levels is not None:
            return self.levels
        rungs = self.ladder.rungs
        levels = torch.full((self.batch,), len(rungs), dtype=torch.uint8)
        for rung, rows in self.groups or []:
            levels[slice(None) if rows is None else rows] = rungs.index(rung)
        return levels


@dataclass
class TieredPlan(Plan):
    """Of the Triton kernel: ``levels`` are what the norms ask for, tier and squarings what each matrix got."""

    tiers: list[dict[str, Any]] = field(default_factory=list)
    got: tuple[Tensor, ...] = ()

    def describe(self) -> dict[str, Tensor]:
        """As :meth:`Plan.describe`."""
        if not self.details:
            tier, squarings = (X.long() for X in self.got)
            most = self.ladder.most_squarings + 1
            bounds = [[after_squaring(each["epsilon"], s) for s in range(most)] for each in self.tiers]
            products = torch.tensor([each["products"] for each in self.tiers], device=self.device)
            self.details = {
                "bound": torch.tensor(bounds, dtype=torch.float64, device=self.device)[tier, squarings],
                "products": products[tier],
                "squarings": squarings,
            }
        return self.details


def plan_for(A: Tensor, ladder: Ladder, trust: bool = False, norm: Tensor | None = None) -> Plan:
    """Pick a rung for each matrix, for the eager or the assembled kernel.

    Args:
        A: shape (batch, n, n).
        trust: never call a matrix outside: what no rung serves gets the last one.
        norm: ‖A‖_F of each matrix, from a kernel that finds them faster and has no use for A².
    """
    count, n = A.shape[:2]
    square_first = norm is None and n >= SQUARE_FIRST_N
    norm = frobenius_norm(A) if norm is None else norm
    if count == 1:
        return _plan_of_one(A, norm, ladder, trust)
    squares = torch.bmm(A, A) if square_first and count else None
    low, high = (float(x) for x in torch.aminmax(norm)) if count else (0.0, 0.0)
    if not high <= ladder.radius:  # or NaN: let the sharper bound decide who is outside
        levels = ladder.levels(norm := norm_bound(A))
    elif squares is None:
        first, last = ladder.level(low), ladder.level(high)
        if ladder.one_group(first, last, count, n):
            return Plan([(ladder.rungs[last], None)], None, ladder, count, A.device)
        levels = ladder.levels_inside(norm)
    else:
        levels = ladder.levels_inside(norm)
    if squares is not None:
        root = frobenius_norm(squares).sqrt()
        levels = torch.minimum(levels, ladder.majorant_levels(root, norm))
    return _grouped(levels, norm, n, ladder, squares, trust)


def _plan_of_one(A: Tensor, norm: Tensor, ladder: Ladder, trust: bool) -> Plan:
    """The plan of a single matrix in plain numbers: a tensor operation costs as much as a small product."""
    frobenius, n = float(norm), A.shape[-1]
    squares = torch.bmm(A, A) if n >= SINGLE_SHARPER_N else None
    level = ladder.level(frobenius)
    if squares is not None:
        root = math.sqrt(float(torch.linalg.vector_norm(squares)))
        if frobenius <= MAJORANT_RATIO * root:
            level = min(level, bisect_left(ladder.majorant_radii, root))
    if level == len(ladder.rungs) or (level and n >= SINGLE_SHARPER_N):
        norm = norm_bound(A)
        level = min(level, ladder.level(float(norm)))
    if level == len(ladder.rungs):
        return _grouped(ladder.levels(norm), norm, n, ladder, squares, trust)
    return Plan([(ladder.rungs[level], None)], None, ladder, 1, A.device, squares=squares)


def _grouped(
    levels: Tensor, norm: Tensor, n: int, ladder: Ladder, squares: Tensor | None, trust: bool
) -> Plan:
    rungs = ladder.rungs
    reason = None
    counts = torch.bincount(levels, minlength=len(rungs) + 1).tolist()
    if counts[-1] and trust:
        levels = levels.clamp_max(len(rungs) - 1)
        counts = [*counts[:-2], counts[-2] + counts[-1]]
    elif counts[-1]:
        code = torch.where(torch.isfinite(norm), int(Reason.NORM), int(Reason.NOT_FINITE))
        reason = torch.where(levels == len(rungs), code, int(Reason.INSIDE)).to(torch.uint8)
    groups: list[tuple[Rung, Tensor | None]] = []
    merged = ladder.group(counts[: len(rungs)], n)
    for first, last in merged:
        if len(merged) == 1 and reason is None:
            rows = None
        else:
            chosen = levels == first if first == last else (levels >= first) & (levels <= last)
            rows = torch.nonzero(chosen)[:, 0]
        groups.append((rungs[last], rows))
    return Plan(groups, None, ladder, norm.shape[0], norm.device, reason, squares)


def reasons(A: Tensor, levels: Tensor, ladder: Ladder) -> Tensor:
    """Why the matrices that no rung serves are outside, a ``Reason`` code for each row, from the levels of a kernel."""
    rows = torch.nonzero(levels == len(ladder.rungs))[:, 0]
    finite = torch.isfinite(norm_bound(A[rows]))
    reason = torch.full(levels.shape, int(Reason.INSIDE), dtype=torch.uint8, device=levels.device)
    reason[rows] = torch.where(finite, int(Reason.NORM), int(Reason.NOT_FINITE)).to(torch.uint8)
    return reason
