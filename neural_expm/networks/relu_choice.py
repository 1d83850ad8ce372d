"""Which construction: the fewest parameters for an ε, or the least error for a budget of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..errors import InputError
from .relu_bounds import SCHEMES
from .relu_construction import (
    MAX_SAWTEETH,
    UNIT_ROUNDOFF,
    ExpRecipe,
    Recipe,
    SqrtRecipe,
    check_count,
    check_positive,
)


def choose_exp(
    n: int,
    radius: float,
    epsilon: float | None = None,
    max_parameters: int | None = None,
    dtype: str = "float64",
) -> ExpRecipe:
    """The recipe for e^A on ‖A‖_∞ ≤ radius.

    Give `epsilon` for the fewest parameters whose proven bound over e^radius, plus the estimated rounding in
    `dtype`, is ≤ epsilon; or `max_parameters` for the least such error within that many nonzero weights and
    biases.

    Raises:
        InputError: neither or both given; a value out of range; no recipe reaches it (the message says what
        can).
    """
    check_count("n", n, 1, 512)
    check_positive("radius", radius)
    first = max(0, math.ceil(math.log2(radius)) - 1)
    shapes = [(degree, s) for degree in SCHEMES for s in range(first, first + 12)]

    def make(shape: tuple[int, int], sawteeth: int) -> ExpRecipe:
        return ExpRecipe(n, float(radius), *shape, sawteeth)

    return _choose(make, shapes, epsilon, max_parameters, dtype)


def choose_sqrt(
    n: int,
    low: float,
    high: float = 1.0,
    epsilon: float | None = None,
    max_parameters: int | None = None,
    dtype: str = "float64",
) -> SqrtRecipe:
    """The recipe for A^{1/2} on symmetric matrices with spectrum in [low, high]; arguments as `choose_exp`.

    Here epsilon is relative to ‖A^{1/2}‖ itself, in the 2-norm and the Frobenius norm.
    """
    check_count("n", n, 1, 512)

    def make(steps: int, sawteeth: int) -> SqrtRecipe:
        return SqrtRecipe(n, float(low), float(high), steps, sawteeth)

    return _choose(make, range(1, 13), epsilon, max_parameters, dtype)


def _choose(
    make: Callable[[Any, int], Any],
    shapes: Sequence[Any],
    epsilon: float | None,
    max_parameters: int | None,
    dtype: str,
) -> Any:
    """The best of ``make(shape, sawteeth)`` over all shapes and numbers of sawteeth."""
    if dtype not in UNIT_ROUNDOFF:
        raise InputError(
            f"dtype={dtype!r}: expected one of {sorted(UNIT_ROUNDOFF)}; pass the name as a string"
        )
    if epsilon is not None and max_parameters is None:
        check_positive("epsilon", epsilon)
        found = [_fewest_teeth(partial(make, shape), epsilon, dtype) for shape in shapes]
        meeting = [recipe for recipe in found if recipe is not None]
        if not meeting:
            raise InputError(_unreachable(make, shapes, epsilon, dtype))
        return min(meeting, key=lambda recipe: recipe.size().parameters)
    if max_parameters is not None and epsilon is None:
        check_positive("max_parameters", max_parameters)
        found = [_most_teeth(partial(make, shape), max_parameters) for shape in shapes]
        fitting = [recipe for recipe in found if recipe is not None]
        if not fitting:
            smallest = min(make(shape, 1).size().parameters for shape in shapes)
            raise InputError(
                f"max_parameters={max_parameters}: the smallest network of this kind has {smallest}; "
                "allow that many or reduce n"
            )
        return min(fitting, key=lambda recipe: _total_error(recipe, dtype))
    raise InputError(
        f"epsilon={epsilon!r}, max_parameters={max_parameters!r}: give one of the two, and only one"
    )


def _total_error(recipe: Recipe, dtype: str) -> float:
    """Proven bound plus estimated rounding."""
    return recipe.promise() + recipe.rounding(dtype)


def _fewest_teeth(make: Callable[[int], Recipe], epsilon: float, dtype: str) -> Recipe | None:
    """The least m that meets epsilon, by bisection: the bound falls with m."""
    low, high = 1, MAX_SAWTEETH
    if _total_error(make(high), dtype) > epsilon:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _total_error(make(middle), dtype) <= epsilon else (middle + 1, high)
    return make(low)


def _most_teeth(make: Callable[[int], Recipe], max_parameters: int) -> Recipe | None:
    """The largest network within the budget: the size grows with m."""
    recipes = (make(sawteeth) for sawteeth in range(MAX_SAWTEETH, 0, -1))
    return next((recipe for recipe in recipes if recipe.size().parameters <= max_parameters), None)


def _unreachable(
    make: Callable[[Any, int], Recipe], shapes: Sequence[Any], epsilon: float, dtype: str
) -> str:
    """Says which dtype can reach epsilon."""
    finest = [make(shape, MAX_SAWTEETH) for shape in shapes]
    floors = {name: min(_total_error(recipe, name) for recipe in finest) for name in UNIT_ROUNDOFF}
    able = [name for name, floor in floors.items() if floor <= epsilon]
    advice = f"use dtype={able[0]!r}" if able else f"no dtype can, float64 reaches {floors['float64']:.1e}"
    return (
        f"epsilon={epsilon:.1e} is below what {dtype} can reach here ({floors[dtype]:.1e}): "
        f"{advice}, or relax epsilon"
    )
