"""Networks as plain numbers: what a kernel on a device, or a graph that a tracer makes, needs of one.

Tuples all through, so that a network is a key: what was made of it on a device is made once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LadderRules:
    """exp by a ladder of tiers.

    Attributes:
        radii, rung_tiers: of each rung.
        tier_radii: of each tier.
        weights: for each tier ``EquivariantTransformer.flat`` and then the read-out of I.
        products: of each tier.
        max_squarings: the domain ends at the last tier's radius times 2 to this power.
        derivative_level: as in ``Ladder``.
    """

    radii: tuple[float, ...]
    rung_tiers: tuple[int, ...]
    tier_radii: tuple[float, ...]
    weights: tuple[float, ...]
    products: tuple[int, ...]
    max_squarings: int
    derivative_level: int


@dataclass(frozen=True)
class StageRules:
    """sign or the square root by a composition of stages.

    Attributes:
        hermitian, general: a, b, c of each stage of a pass, for a real spectrum and for any.
        radii: R_t of each general stage.
        scale: the spectral radius that the first general stage wants.
        passes: at most so many.
        unit: the residual that is accepted, in units of n·eps·max(1, ‖X‖²), X of the scaled matrix.
        largest: no larger residual is accepted.
    """

    hermitian: tuple[float, ...]
    general: tuple[float, ...]
    radii: tuple[float, ...]
    scale: float
    passes: int
    unit: float
    largest: float


Rules = LadderRules | StageRules


def numbers(rules: Rules) -> tuple[Any, ...]:
    """The attributes in order: the parameters of an operator."""
    return tuple(vars(rules).values())


def hashable(parameters: Any) -> tuple[Any, ...]:
    """The parameters of an operator, which torch hands on as lists, as :func:`numbers` gave them."""
    return tuple(tuple(p) if isinstance(p, (list, tuple)) else p for p in parameters)
