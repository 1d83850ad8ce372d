"""From a norm bound to (products, squarings): the cheapest rung that keeps the promise, and which rows share one."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Cost model of the eager kernel behind merging small groups, nanoseconds on a CPU; only the ratios matter: of a group
# whatever its size, its calls; for one matrix of a product with the sums before it, and of taking the matrix out of the
# batch and putting it back, unless the group is the whole batch.
GROUP_COST = 70_000.0


def product_cost(n: int) -> float:
    """Of one matrix n × n."""
    return 0.9 * n**2 + 0.04 * n**3


def _gather_cost(n: int) -> float:
    return 8.0 + 0.5 * n**2


@dataclass(frozen=True)
class Rung:
    """One way to evaluate: a tier of the network, then s squarings.

    Attributes:
        tier: index of the tier.
        products: its matrix products m.
        squarings: s.
        radius: largest ‖A‖₂ (disc bound).
        majorant_radius: largest β = ‖A²‖^{1/2} while ‖A‖ ≤ MAJORANT_RATIO · β (majorant bound).
        bound: relative error (1 + ε)^{2^s} − 1 before rounding.
    """

    tier: int
    products: int
    squarings: int
    radius: float
    majorant_radius: float
    bound: float

    @property
    def cost(self) -> int:
        """Matrix products in all."""
        return self.products + self.squarings


class Group(NamedTuple):
    """Levels that are computed together, at the last one's rung.

    Attributes:
        first, last: levels.
        whole: the whole batch is computed, before other groups are.
    """

    first: int
    last: int
    whole: bool


MAJORANT_RATIO = 8.0
# How much more than ε a derivative may err: |p′ − e^z| ≤ (2^m/ρ) ε or so on |z| ≤ ρ (Bernstein's inequality; the error
# of a polynomial of degree 2^m that is ε on the circle of radius ρ), which a shallow tier of small ρ does not keep low.
DERIVATIVE_FACTOR = 32.0


def after_squaring(epsilon: float, squarings: int) -> float:
    """(1 + ε)^{2^s} − 1, without cancellation."""
    return math.expm1(2**squarings * math.log1p(epsilon))


@lru_cache(maxsize=64)
def _tensor(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


class Ladder:
    """Rungs of increasing radius and cost.

    Args:
        tiers: (products, radius, majorant radius, ε) of each tier, shallow to deep.
        max_squarings: the last rung is the deepest tier with this many squarings.
        rtol: no rung whose bound is above this.
    """

    def __init__(
        self, tiers: Sequence[tuple[int, float, float, float]], max_squarings: int, rtol: float = float("inf")
    ) -> None:
        candidates = [
            Rung(i, m, s, radius * 2**s, majorant * 2**s, after_squaring(epsilon, s))
            for i, (m, radius, majorant, epsilon) in enumerate(tiers)
            for s in range(max_squarings + 1)
            if after_squaring(epsilon, s) <= rtol
        ]
        # Among equals the one that reaches farther; then fewer squarings, which amplify rounding.
        candidates.sort(key=lambda rung: (rung.cost, -rung.squarings))
        self.rungs: list[Rung] = []
        for rung in candidates:
            if not self.rungs or rung.radius > self.rungs[-1].radius * 1.001:
                if self.rungs and self.rungs[-1].cost == rung.cost:
                    self.rungs.pop()
                self.rungs.append(rung)
        self.radii = [rung.radius for rung in self.rungs]
        self.majorant_radii = [
            max(rung.majorant_radius for rung in self.rungs[: i + 1]) for i in range(len(self.rungs))
        ]

        factors = [2**rung.products / (rung.radius / 2**rung.squarings) for rung in self.rungs]
        # Derivatives of smaller levels are computed at this one.
        self.derivative_level = min(
            (i for i, factor in enumerate(factors) if factor <= DERIVATIVE_FACTOR),
            default=len(self.rungs) - 1,
        )

    @property
    def radius(self) -> float:
        """Norm of the largest matrix that any rung serves."""
        return self.radii[-1]

    @property
    def most_squarings(self) -> int:
        """Of any rung."""
        return max(rung.squarings for rung in self.rungs)

    def level(self, norm: float) -> int:
        """The first rung whose radius is at least ``norm``; ``len(rungs)`` where none is, or for NaN."""
        return bisect_left(self.radii, norm) if norm <= self.radius else len(self.rungs)

    def levels(self, norms: np.ndarray) -> Tensor:
        """:meth:`level` of each norm, uint8."""
        found = np.searchsorted(self.radii, norms).astype(np.uint8)  # NaN comes after all
        return torch.from_numpy(found)

    def within(self, norm: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Whether the rungs ``first`` to ``last`` (not included) serve each norm, shape (last − first, batch).

        Nested: what a rung serves the next ones serve too.  None serves NaN.  Comparisons are shared among threads;
        ``torch.bucketize`` is not.
        """
        return norm <= _tensor(tuple(self.radii), norm.dtype, norm.device)[first:last, None]

    def within_majorant(self, root: Tensor, norm: Tensor, last: int | None = None) -> Tensor:
        """:meth:`within` for β = ``root`` under the majorant bound, whose ratio ‖A‖ may exceed."""
        radii = _tensor(tuple(self.majorant_radii), root.dtype, root.device)[:last, None]
        return (root <= radii) & (norm <= MAJORANT_RATIO * root)

    def one_group(self, first: int, last: int, count: int, n: int) -> bool:
        """Whether ``count`` matrices of levels ``first`` to ``last`` are not worth telling apart (see :meth:`group`).

        False for a ``last`` beyond the rungs.
        """
        if first == last < len(self.rungs):
            return True
        if last == len(self.rungs) or self.rungs[first].squarings < self.rungs[last].squarings - 1:
            return False
        saved = (self.rungs[last].cost - self.rungs[first].cost) * product_cost(n)
        return count * saved <= GROUP_COST

    def group(self, counts: Sequence[int], n: int, batch: int) -> list[Group]:
        """Which neighbouring levels to compute together: a dynamic programme over the cost model.

        A deeper tier may serve a smaller matrix, but no more than one squaring beyond its own.  One group may compute
        the whole batch, which spares it the gathering; what it computes of others is computed over.

        Args:
            counts: matrices at each level.
            batch: matrices in all, with those outside.
        """
        per_product, gather = product_cost(n), _gather_cost(n)
        used = [level for level, count in enumerate(counts) if count]
        before = [0, *accumulate(counts[level] for level in used)]
        squarings = [self.rungs[level].squarings for level in used]
        # The least cost of the first k levels that occur, without and with a group that is the whole batch; and how
        # many levels its last group leaves to others, and whether that one is the whole.
        parted, with_whole = [0.0], [math.inf]
        last_parted, last_with = [(0, False)], [(0, False)]
        for k, level in enumerate(used, 1):
            work = self.rungs[level].cost * per_product
            whole, each, most = GROUP_COST + batch * work, work + gather, squarings[k - 1] - 1
            least, least_with, left, left_with = math.inf, math.inf, (0, False), (0, False)
            for j in range(k):
                if squarings[j] < most:
                    continue  # each squaring too many costs a matrix half a digit
                cost = GROUP_COST + (before[k] - before[j]) * each
                if parted[j] + cost < least:
                    least, left = parted[j] + cost, (j, False)
                if with_whole[j] + cost < least_with:
                    least_with, left_with = with_whole[j] + cost, (j, False)
                if parted[j] + whole < least_with:
                    least_with, left_with = parted[j] + whole, (j, True)
            parted.append(least)
            with_whole.append(least_with)
            last_parted.append(left)
            last_with.append(left_with)
        groups, k, one_whole = [], len(used), with_whole[-1] < parted[-1]
        while k:
            j, whole_now = (last_with if one_whole else last_parted)[k]
            groups.append(Group(used[j], used[k - 1], whole_now))
            k, one_whole = j, one_whole and not whole_now
        return groups
