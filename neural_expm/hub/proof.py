"""Trust the numbers, not the file's word for it: a foreign "certified" bound is proven from the weights.

Of each family the proof checks what the arithmetic of its run-time certificate relies on, and the stated bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ..certificate import ExponentialError, half_plane_radius
from ..checkpoints import load_record
from ..domain import Domain
from ..errors import CheckpointError
from ..manifest import Checkpoint
from ..networks.ladder import MAJORANT_RATIO

# A figure may be stated with the digits of a manifest; this much above the proven one it is still the same.
STATED_DIGITS = 1e-9


class Unproven(Exception):
    """What the weights do not prove, in words that follow "its weights do not prove it:"."""


@lru_cache(maxsize=64)
def prove(record: Checkpoint) -> Checkpoint:
    """The record, once its network has been built and a bound that it calls certified has been proven anew.

    Raises:
        CheckpointError: the weights do not build the network, do not prove the stated bound, or belong to a
            family for which nothing can be proven.
    """
    network = load_record(record)
    if record.bound_kind != "certified":
        return record
    proof = PROOFS.get(f"{record.family}/{record.function}", PROOFS.get(record.family, _none))
    try:
        proof(network, record)
    except (Unproven, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"checkpoint {record.name!r} in {record.root} calls its bound of {record.bound:.6g} certified, but its "
            f"weights do not prove it: {error}; do not rely on it, and tell its author"
        ) from error
    return record


def _exponential(network: Any, record: Checkpoint) -> None:
    """Each tier keeps its ε on its disc and by its majorant; the deepest rung keeps the stated bound."""
    for tier, stated in zip(network.tiers, network.config["tiers"], strict=True):
        error, what = ExponentialError.of(tier), f"the tier of {stated['products']} products"
        _at_most(error.disc(stated["radius"]), stated["epsilon"], f"{what} at radius {stated['radius']:g}")
        majorant = error.majorant(stated["majorant_radius"], ratio=MAJORANT_RATIO)
        _at_most(majorant, stated["epsilon"], f"{what} by its majorant")
    _at_most(max(rung.bound for rung in network.ladder.rungs), record.bound, "the whole ladder")
    _covers(record.domain, norm="2", radius=network.radius)


def _composition(network: Any, record: Checkpoint) -> None:
    """No stage moves an eigenvalue across the imaginary axis; the error itself is certified as each matrix runs."""
    for stage, radius in zip(network.general.tolist(), network.config["general_radii"], strict=True):
        _at_most(radius, half_plane_radius(stage), f"the half-plane radius of the stage {stage}")
    upper = 1.0  # Hermitian: eigenvalues start in (0, 1], and each stage maps (0, u] into (0, max p]
    for _ in range(network.config["passes"]):
        for a, b, c in network.hermitian.tolist():
            # p(x) = x q(x²), q(t) = a + bt + ct²: extremes on [0, u] are at an end or where q' = 0 or p' = 0
            within = [0.0, upper**2, *_roots(0.0, 2 * c, b, upper**2), *_roots(5 * c, 3 * b, a, upper**2)]
            if not min(a + b * t + c * t * t for t in within) > 0:
                raise Unproven(
                    f"the Hermitian stage {(a, b, c)} changes the sign of eigenvalues below {upper:.6g}"
                )
            upper = max(math.sqrt(t) * (a + b * t + c * t * t) for t in within) * (1 + 1e-12)


def _constructed(network: Any, record: Checkpoint) -> None:
    """The theorem of the recipe, in exact arithmetic, on a domain inside the one that it speaks of."""
    recipe = getattr(network, "recipe", None)
    if recipe is None:
        raise Unproven("a trained ReLU network has no proof; publish its bound as 'statistical'")
    _at_most(recipe.bound().relative, record.bound, "the recipe")
    domain = record.domain
    if domain.complex or domain.n != (recipe.n, recipe.n):
        raise Unproven(f"the network takes real matrices of n = {recipe.n} only, the domain is {domain}")
    if record.function == "expm":
        _covers(domain, norm="inf", radius=recipe.radius)
    else:
        _covers(domain, norm="2", radius=recipe.high)
        if domain.structure != "spd" or domain.gap * domain.radius < recipe.low * (1 - STATED_DIGITS):
            raise Unproven(
                f"the spectrum has to lie in [{recipe.low:g}, {recipe.high:g}], the domain is {domain}"
            )


def _none(network: Any, record: Checkpoint) -> None:
    raise Unproven(f"there is no proof for {record.family!r} networks; publish its bound as 'statistical'")


# family, or family/function, → what raises Unproven unless the weights prove what the record states
PROOFS: dict[str, Callable[[Any, Checkpoint], None]] = {
    "equivariant/expm": _exponential,
    "equivariant/sign": _composition,
    "equivariant/sqrtm": _composition,
    "relu": _constructed,
}


def _at_most(proven: float, stated: float, what: str) -> None:
    if not proven <= stated * (1 + STATED_DIGITS):
        raise Unproven(f"{what} states {stated:.6g}, proven is {proven:.6g}")


def _covers(domain: Domain, norm: str, radius: float) -> None:
    if domain.norm != norm or not domain.radius <= radius * (1 + STATED_DIGITS):
        raise Unproven(f"the proof needs ‖A‖_{norm} ≤ {radius:g}, the domain is {domain}")


def _roots(a: float, b: float, c: float, upper: float) -> list[float]:
    """Real roots of at² + bt + c in (0, upper)."""
    if a == 0:
        candidates = [-c / b] if b else []
    elif (discriminant := b * b - 4 * a * c) < 0:
        candidates = []
    else:
        candidates = [(-b + sign * math.sqrt(discriminant)) / (2 * a) for sign in (1, -1)]
    return [t for t in candidates if 0 < t < upper]
