"""Which rung of a ladder each matrix gets, and what a report says of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..domain import Reason, frobenius_norm, norm_bound
from ..kernels.calling import readable
from ..kernels.results import empty_result
from .ladder import MAJORANT_RATIO, Ladder, Rung, after_squaring

if TYPE_CHECKING:
    from ..kernels.one_parameter import OneParameter

# From this n on A² is formed before the depth is chosen: its norm is a sharper guide, and the product is needed anyway.
# Below, the Frobenius norm alone is the guide: a sharper bound costs more than the product that it saves.
SQUARE_FIRST_N = 16
# Squares of so many bytes lie where others have lain: with a result as large C libraries give them to the system at
# once, and fresh pages take longer than the products.
SQUARES_BYTES = 1 << 20
# On so few matrices a tensor operation costs as much as a product: they are told apart in plain numbers, below this n
# by the Frobenius norm alone.
FEW, FEW_SHARPER_N = 16, 32
# For a lone one sharper bounds cost more than they save below the first n, and below the second one where the Frobenius
# norm asks for no squaring; squarings also cost digits.
LONE_SHARPER_N = 96, 200

# Rows with one rung each; without rows, the first if any, the whole batch, of which later ones compute some anew.
Groups = list[tuple[Rung, Tensor | None]]


@dataclass
class Plan:
    """Who computes what, and what the report says: groups of rows with one rung each, or the rung of every row.

    The eager kernel computes group by group; native ones sort rows by themselves and hand back ``levels``.
    """

    groups: Groups | None
    levels: Tensor | None  # where there are no groups: each row's rung, their number for rows outside
    ladder: Ladder
    batch: int
    device: torch.device
    reason: Tensor | None = None  # None: every matrix is inside
    squares: Tensor | None = None
    kernel: str = "eager"  # which one the plan was made for
    shared: OneParameter | None = None  # what the matrices have in common
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

    def by_group(self) -> Groups:
        """The rows of each rung."""
        if self.groups is None:
            rungs, levels = self.ladder.rungs, self.by_row()
            used = [level for level in levels.unique().tolist() if level < len(rungs)]
            self.groups = [(rungs[level], _rows(levels == level)) for level in used]
        return self.groups

    def by_row(self) -> Tensor:
        """The rung of each row."""
        if self.shared is not None:
            return self.ladder.levels(self.shared.norms())
        if self.levels is not None:
            return self.levels
        rungs = self.ladder.rungs
        levels = torch.full((self.batch,), len(rungs), dtype=torch.uint8, device="cpu")
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


def plan_for(A: Tensor, ladder: Ladder, trust: bool = False) -> Plan:
    """Pick a rung for each matrix, for the eager kernel.

    Args:
        A: shape (batch, n, n).
        trust: never call a matrix outside: what no rung serves gets the last one.
    """
    (count, n), norm = A.shape[:2], frobenius_norms(A)
    # A recorder of operations would not see numbers that are read from memory.
    if 0 < count <= FEW and readable(A) and (plan := _plan_of_few(A, norm, ladder)) is not None:
        return plan
    squares = _squares(A) if n >= SQUARE_FIRST_N and count else None
    low, high = (float(x) for x in torch.aminmax(norm)) if count else (0.0, 0.0)
    # The rungs in question: all those below the last serve some matrices and not others.
    first, last = ladder.level(low), ladder.level(high)
    if not high <= ladder.radius:  # or NaN: let the sharper bound decide who is outside
        first, norm = 0, norm_bound(A)
    elif squares is None and ladder.one_group(first, last, count, n):
        return Plan([(ladder.rungs[last], None)], None, ladder, count, A.device)
    if squares is None:
        within = ladder.within(norm, first, last)
    else:
        first, root = 0, frobenius_norms(squares).sqrt()
        within = ladder.within(norm, 0, last) | ladder.within_majorant(root, norm, last)
    return _grouped(within, first, norm, n, ladder, squares, trust)


def _squares(A: Tensor) -> Tensor:
    """A² of a batch."""
    if not readable(A):
        return torch.bmm(A, A)
    return torch.bmm(A.detach(), A.detach(), out=empty_result(A, SQUARES_BYTES))


def frobenius_norms(A: Tensor) -> Tensor:
    """As in ``domain``, where it is also exported: a reduction over one dimension is faster than over two."""
    if A.is_conj() or not A.is_contiguous():
        return frobenius_norm(A)
    entries = torch.view_as_real(A).flatten(-3) if A.is_complex() else A.flatten(-2)
    return torch.linalg.vector_norm(entries, dim=-1)


def _plan_of_few(A: Tensor, norm: Tensor, ladder: Ladder) -> Plan | None:
    """The plan in plain numbers; None where a matrix may be outside."""
    (count, n), norms = A.shape[:2], norm.tolist()
    levels, squares = [ladder.level(bound) for bound in norms], None
    sharper = n >= FEW_SHARPER_N
    if count == 1:
        squared = levels[0] == len(ladder.rungs) or ladder.rungs[levels[0]].squarings > 0
        sharper = n >= LONE_SHARPER_N[0 if squared else 1]
    if sharper:
        squares = torch.bmm(A, A)
        for i, root in enumerate(frobenius_norms(squares).sqrt_().tolist()):
            if norms[i] <= MAJORANT_RATIO * root:
                levels[i] = min(levels[i], bisect_left(ladder.majorant_radii, root))
    if max(levels) == len(ladder.rungs) or (count == 1 and sharper and any(levels)):
        bounds = norm_bound(A).tolist()
        levels = [min(level, ladder.level(bound)) for level, bound in zip(levels, bounds, strict=True)]
        if max(levels) == len(ladder.rungs):
            return None
    if min(levels) == max(levels):
        return Plan([(ladder.rungs[levels[0]], None)], None, ladder, count, A.device, squares=squares)
    counts = [levels.count(level) for level in range(max(levels) + 1)]

    def rows_of(low: int, high: int) -> Tensor:
        return torch.tensor([i for i, level in enumerate(levels) if low <= level <= high], device=A.device)

    groups = _groups(counts, n, count, ladder, rows_of)
    return Plan(groups, None, ladder, count, A.device, squares=squares)


def _grouped(
    within: Tensor,
    first: int,
    norm: Tensor,
    n: int,
    ladder: Ladder,
    squares: Tensor | None,
    trust: bool,
) -> Plan:
    """The plan of a batch, of which the rungs from ``first`` on serve the rows ``within``, and the next one the rest.

    Beyond the last rung is outside.
    """
    rungs, batch = ladder.rungs, norm.shape[0]
    served = [*_counts(within), batch]
    counts = [0] * first + [b - a for a, b in zip([0, *served], served, strict=False)]
    reason = None
    if len(counts) > len(rungs):
        outside = counts.pop()
        if trust:
            counts[-1] += outside
            within = within[:-1]
        elif outside:
            code = torch.where(torch.isfinite(norm), int(Reason.NORM), int(Reason.NOT_FINITE))
            reason = torch.where(within[-1], int(Reason.INSIDE), code).to(torch.uint8)
    groups = _groups(
        counts, n, batch, ladder, lambda low, high: _rows_between(within, low - first, high - first)
    )
    return Plan(groups, None, ladder, batch, norm.device, reason, squares)


def groups_of(levels: Tensor, n: int, ladder: Ladder) -> Groups:
    """The groups for matrices of known levels, uint8, all inside: those whose derivative is asked for."""
    low, high = (int(x) for x in torch.aminmax(levels))
    if low == high:
        return [(ladder.rungs[low], None)]
    counts = torch.bincount(levels).tolist()

    def rows_of(low: int, high: int) -> Tensor:
        return _rows(levels == low if low == high else (levels >= low) & (levels <= high))

    return _groups(counts, n, levels.shape[0], ladder, rows_of)


def _groups(
    counts: list[int], n: int, batch: int, ladder: Ladder, rows_of: Callable[[int, int], Tensor]
) -> Groups:
    """What is computed together, in order; ``rows_of`` tells the rows of the levels from one to another."""
    groups: Groups = []
    for low, high, whole in ladder.group(counts, n, batch):
        if whole or sum(counts[low : high + 1]) == batch:
            groups.insert(0, (ladder.rungs[high], None))  # the rows of other groups are computed over it
        else:
            groups.append((ladder.rungs[high], rows_of(low, high)))
    return groups


def _rows_between(within: Tensor, low: int, high: int) -> Tensor:
    """The rows that rung ``low`` of ``within`` or a later one serves first, up to ``high``."""
    if high == len(within):
        chosen = ~within[low - 1]
    elif low:
        chosen = within[high] ^ within[low - 1]
    else:
        chosen = within[high]
    return _rows(chosen)


# NumPy does both several times as fast as torch.


def _counts(chosen: Tensor) -> list[int]:
    """How many truth values of each row are true."""
    if chosen.is_cpu and type(chosen) is Tensor:
        return [int(np.count_nonzero(row)) for row in chosen.numpy()]
    return [int(count) for count in chosen.sum(1).tolist()]


def _rows(chosen: Tensor) -> Tensor:
    """Indices of those that are true."""
    if chosen.is_cpu and type(chosen) is Tensor:
        return torch.from_numpy(np.flatnonzero(chosen.numpy()))
    return torch.nonzero(chosen)[:, 0]


def reasons(A: Tensor, levels: Tensor, ladder: Ladder) -> Tensor:
    """Why the matrices that no rung serves are outside, a ``Reason`` code for each row, from the levels of a kernel."""
    rows = torch.nonzero(levels == len(ladder.rungs))[:, 0]
    finite = torch.isfinite(norm_bound(A[rows]))
    reason = torch.full(levels.shape, int(Reason.INSIDE), dtype=torch.uint8, device=levels.device)
    reason[rows] = torch.where(finite, int(Reason.NORM), int(Reason.NOT_FINITE)).to(torch.uint8)
    return reason
