"""From a norm bound to (products, squarings): the cheapest rung that keeps the promise, and which rows share one."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# Cost model of the eager kernel behind merging small groups, nanoseconds on a CPU; only the ratios matter: of a group
# whatever its size, its calls; for one matrix of a product with the sums before it, and of taking the matrix out of the
# batch and putting it back, unless the group is the whole batch.
GROUP_COST = 80_000.0


def _product_cost(n: int) -> float:
    return 6.0 + 0.1 * n**3


def _gather_cost(n: int) -> float:
    return 10.0 + 0.7 * n**2


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
        saved = (self.rungs[last].cost - self.rungs[first].cost) * _product_cost(n)
        return count * saved <= GROUP_COST

    def cheaper_whole(self, rung: Rung, count: int, batch: int, n: int) -> bool:
        """Whether ``rung`` computes the rest of a batch in less time than ``count`` rows, the most, take to gather."""
        rest = batch - count
        return rest < count and rest * rung.cost * _product_cost(n) <= count * _gather_cost(n)

    def group(self, counts: Sequence[int], n: int) -> list[tuple[int, int]]:
        """Which neighbouring levels to compute together: a dynamic programme over the cost model.

        A deeper tier may serve a smaller matrix, but no more than one squaring beyond its own.

        Args:
            counts: matrices at each level.

        Returns:
            (first, last) levels of each group, to be computed at the last one's rung.
        """
        per_product, gather = _product_cost(n), _gather_cost(n)
        used = [level for level, count in enumerate(counts) if count]
        if not used:
            return []
        best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the first k used levels, start of the last group
        for k in range(1, len(used) + 1):
            rung = self.rungs[used[k - 1]]
            options = []
            for j in range(k):
                if self.rungs[used[j]].squarings < rung.squarings - 1:
                    continue  # each squaring too many costs a matrix half a digit
                matrices = sum(counts[level] for level in used[j:k])
                work = rung.cost * per_product + (gather if k - j < len(used) else 0.0)
                options.append((best[j][0] + GROUP_COST + matrices * work, j))
            best.append(min(options))
        groups, k = [], len(used)
        while k:
            j = best[k][1]
            groups.append((used[j], used[k - 1]))
            k = j
        return groups[::-1]
