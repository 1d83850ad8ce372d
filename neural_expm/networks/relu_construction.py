"""ReLU networks that compute the matrix exponential and square root, constructed with a proof.

A recipe is a handful of numbers from which everything follows: the layers (`layers()`), the proven bound
(`bound()`, derived in `relu_bounds`) and the size (`size()`, derived in `relu_size`). `choose_exp` and
`choose_sqrt` find the recipe with the fewest parameters for an ε, or the best ε for a budget of parameters.

>>> recipe = choose_exp(n=3, radius=2.0, epsilon=1e-6)
>>> recipe.size().depth, recipe.bound().relative_to_radius      # proven, before anything is built
>>> weights_and_biases = recipe.layers()                        # affine, ReLU, affine, …, affine
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np
from scipy import sparse

from ..errors import InputError
from .relu_blocks import Affine, Bounded, Builder, bounded, matrix_products
from .relu_bounds import SCHEMES, ExpBound, SqrtBound, exp_bound, sqrt_bound, taylor_blocks
from .relu_size import NetworkSize, exp_size, sqrt_size

Layers = list[tuple[sparse.csr_array, np.ndarray]]

MAX_SAWTEETH = 26  # 4^{−27} is the unit roundoff of float64: more teeth add nothing
MAX_PARAMETERS = 40_000_000  # about 1 GB while it is built
# Rounding of one scalar product of numbers ≤ 1, in units u: measured, extreme matrices included, with room to
# spare.
ROUNDING_PER_PRODUCT = 3.0
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float64": 2.0**-53}


@dataclass(frozen=True)
class ExpRecipe:
    """e^A for every real n×n A with ‖A‖_∞ ≤ radius: Taylor of `degree` at A/2^s, squared s times."""

    n: int
    radius: float
    degree: int
    squarings: int
    sawteeth: int

    function = "expm"

    def __post_init__(self) -> None:
        _check_n(self.n)
        check_positive("radius", self.radius)
        if self.degree not in SCHEMES:
            raise InputError(f"degree={self.degree!r}: expected one of {sorted(SCHEMES)}; pass one of them")
        check_count("squarings", self.squarings, 0, 40)
        check_count("sawteeth", self.sawteeth, 1, MAX_SAWTEETH)

    def bound(self) -> ExpBound:
        """Theorem 1 of `relu_bounds`."""
        return exp_bound(self.n, self.radius, self.degree, self.squarings, self.sawteeth)

    def promise(self) -> float:
        """The figure that ε is about: the proven error over e^radius, in the ∞-norm."""
        return self.bound().relative_to_radius

    def size(self) -> NetworkSize:
        """Depth, width and parameters."""
        return exp_size(self.n, self.degree, self.squarings, self.sawteeth)

    def rounding(self, dtype: str = "float64") -> float:
        """Estimate of the rounding error over e^radius in `dtype`: not part of the proof."""
        return _rounding(replace(self, sawteeth=12), dtype)

    def layers(self) -> Layers:
        """The affine maps in order, a ReLU between each two; input and output are row-major."""
        _check_size(self)
        n, bound = self.n, self.bound()
        count, _ = SCHEMES[self.degree]
        builder = Builder(n * n)
        powers = [bounded(0.5**self.squarings * builder.input(), bound.powers[0])]
        for k in range(1, count):
            (value,), powers = matrix_products(builder, n, [(powers[-1], powers[0])], self.sawteeth, powers)
            powers.append(bounded(value, bound.powers[k]))
        value = _horner(self, builder, powers, bound)
        for norm in bound.squares:
            factor = bounded(value, norm)
            (value,), _ = matrix_products(builder, n, [(factor, factor)], self.sawteeth)
        return builder.finish(value)


def _horner(recipe: ExpRecipe, builder: Builder, powers: list[Bounded], bound: ExpBound) -> Affine:
    """P(A) = (…(B_{b−1} A^q + B_{b−2}) A^q + …) + B_0; the blocks B_i are linear in the powers at hand."""
    eye = np.eye(recipe.n).ravel()
    signals = [power.signal for power in powers]
    coefficients = [[float(c) for c in block] for block in taylor_blocks(recipe.degree)]

    def combine(block: list[float]) -> Affine:
        value = block[1] * signals[0] + block[0] * eye
        for c, signal in zip(block[2:], signals[1:], strict=False):
            value = value + c * signal
        return value

    def norm(block: list[float]) -> float:
        # A hair above the exact sum, which float64 rounds.
        terms = zip(block[1:], bound.powers, strict=False)
        return (block[0] + sum(c * x for c, x in terms)) * (1 + 2.0**-50)

    top, *rest = [combine(block) for block in reversed(coefficients)]
    lower = [
        bounded(value, norm(block)) for value, block in zip(rest, reversed(coefficients[:-1]), strict=True)
    ]
    power, value = powers[-1], top
    for horner in bound.horner[:-1]:
        carried = lower if len(lower) == 1 else [power, *lower]
        pair = (power, bounded(value, horner))
        (value,), carried = matrix_products(builder, recipe.n, [pair], recipe.sawteeth, carried)
        if len(lower) > 1:
            power, *carried = carried
        value = value + carried[0].signal
        lower = carried[1:]
    return value


@dataclass(frozen=True)
class SqrtRecipe:
    """A^{1/2} for every symmetric n×n A with spectrum in [low, high]: `steps` of coupled Newton–Schulz."""

    n: int
    low: float
    high: float
    steps: int
    sawteeth: int

    function = "sqrtm"

    def __post_init__(self) -> None:
        _check_n(self.n)
        check_positive("low", self.low)
        check_positive("high", self.high)
        if self.low >= self.high:
            raise InputError(
                f"low={self.low!r} must be below high={self.high!r}: pass the ends of the spectrum"
            )
        check_count("steps", self.steps, 1, 40)
        check_count("sawteeth", self.sawteeth, 1, MAX_SAWTEETH)

    def bound(self) -> SqrtBound:
        """Theorem 2 of `relu_bounds`."""
        return sqrt_bound(self.n, self.low, self.high, self.steps, self.sawteeth)

    def promise(self) -> float:
        """The figure that ε is about: the proven relative error, 2-norm and Frobenius norm."""
        return self.bound().relative

    def size(self) -> NetworkSize:
        """Depth, width and parameters."""
        return sqrt_size(self.n, self.steps, self.sawteeth)

    def rounding(self, dtype: str = "float64") -> float:
        """Estimate of the relative rounding error in `dtype`: not part of the proof."""
        return _rounding(replace(self, sawteeth=12), dtype)

    def layers(self) -> Layers:
        """The affine maps in order, a ReLU between each two; input and output are row-major."""
        _check_size(self)
        n, eye = self.n, np.eye(self.n).ravel()
        builder = Builder(n * n)
        first, *steps = self.bound().steps
        y = bounded((1.0 / self.high) * builder.input(), first.y)
        z = bounded(-first.b * y.signal + first.a * eye, first.t)  # Z₁ = T₀
        (product,), carried = matrix_products(builder, n, [(y, z)], self.sawteeth, [z] if steps else [])
        for index, step in enumerate(steps):
            last = index == len(steps) - 1
            y = bounded(product, step.y)
            z = carried[0]
            (w,), carried = matrix_products(builder, n, [(z, y)], self.sawteeth, [y] if last else [y, z])
            t = bounded(-step.b * w + step.a * eye, step.t)
            y, *rest = carried
            pairs = [(y, t)] + [(t, z) for z in rest]
            (product, *results), _ = matrix_products(builder, n, pairs, self.sawteeth)
            carried = [] if last else [bounded(results[0], steps[index + 1].z)]
        return builder.finish(math.sqrt(self.high) * product)


Recipe = ExpRecipe | SqrtRecipe


@cache
def _rounding(coarse: Recipe, dtype: str) -> float:
    """Rounding as one more error of each scalar product: ROUNDING_PER_PRODUCT·u in place of 4^{−(m+1)}.

    The bound is linear where that is small, so its slope between two numbers of sawteeth is the sensitivity.
    """
    fine = replace(coarse, sawteeth=coarse.sawteeth + 4)
    change = 4.0 ** -(coarse.sawteeth + 1) - 4.0 ** -(fine.sawteeth + 1)
    return (coarse.promise() - fine.promise()) / change * ROUNDING_PER_PRODUCT * UNIT_ROUNDOFF[dtype]


def recipe_from_config(config: dict[str, Any]) -> Recipe:
    """The recipe that `recipe_to_config` wrote down.

    Raises:
        InputError: unknown function, unknown or missing key, value out of range.
    """
    kinds = {cls.function: cls for cls in (ExpRecipe, SqrtRecipe)}
    function = config.get("function")
    if function not in kinds:
        raise InputError(f"function={function!r}: a constructed ReLU network computes one of {sorted(kinds)}")
    kind = kinds[function]
    given, expected = set(config) - {"function"}, {item.name for item in fields(kind)}
    if given != expected:
        raise InputError(
            f"recipe keys {sorted(given)}: a constructed {function} takes exactly {sorted(expected)}"
        )
    return kind(**{key: value for key, value in config.items() if key != "function"})


def recipe_to_config(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON-able numbers."""
    return {"function": recipe.function, **asdict(recipe)}


def _check_size(recipe: Recipe) -> None:
    size = recipe.size()
    if size.parameters > MAX_PARAMETERS:
        raise InputError(
            f"this {recipe.function} network would have {size.parameters:,} nonzero parameters in "
            f"{size.depth} hidden layers of width ≤ {size.width:,} (about {size.parameters * 12 >> 20:,} "
            f"MiB), more than the {MAX_PARAMETERS:,} that are built; reduce n or the radius, or relax epsilon"
        )


def _check_n(n: int) -> None:
    check_count("n", n, 1, 512)


def check_count(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name}={value!r}: expected a whole number from {least} to {most}")


def check_positive(name: str, value: float | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
        raise InputError(f"{name}={value!r}: expected a positive finite number")
