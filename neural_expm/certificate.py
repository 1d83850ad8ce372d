"""Error bounds, as code that recomputes them from the weights.

**exp.**  F(A) = p(A)e^{−A} − I is f(A) for the entire function f(z) = p(z)e^{−z} − 1.  By von Neumann's inequality
‖F(A)‖₂ ≤ max_{|z| ≤ ‖A‖₂} |f(z)|, so ‖A‖₂ ≤ ρ gives ‖p(A) − e^A‖₂ ≤ ε‖e^A‖₂ with ε = max_{|z| = ρ} |f(z)|, for
every A, normal or not (Higham, *Functions of Matrices*, section 4.8 on von Neumann).

The Taylor coefficients c_k of f are computed in exact rational arithmetic from the stored weights, so nothing is lost
to the cancellation in p(z)e^{−z} − 1.  They give two bounds:

* ``disc``: the maximum over a grid on the circle plus a Lipschitz remainder, (πρ/N) Σ k|c_k|ρ^{k−1};
* ``majorant``: Σ |c_k| β^k, which bounds ‖F(A)‖ in any consistent norm with β = ‖A²‖^{1/2} and the odd terms times
  ‖A‖/β (Al-Mohy & Higham 2009, SIAM J. Matrix Anal. Appl. 31(3), theorem 4.2, in the special case p = 2).

**sign.**  Each stage p_t of the composition is shown to keep the right half-plane on a half-disc, see
:func:`half_plane_radius`; the run-time part is in ``networks/composition.py``.

**Constructed ReLU networks.**  Theorems 1 and 2 of ``networks/relu_bounds.py``, recomputed from the recipe in 60-digit
arithmetic by ``network.recipe.bound()``.

Rounding is not in these bounds; it is measured and reported apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Covers the rounding of a few hundred float64 operations on numbers whose sum of moduli is in the bound itself.
ROUNDING = 1.0 + 1e-12
GRID = 1 << 14


@dataclass(frozen=True)
class Dyadic:
    """A polynomial with coefficients ``numerators[k] / 2**exponent``: exact, as every float is dyadic."""

    numerators: tuple[int, ...]
    exponent: int

    def __mul__(self, other: Dyadic) -> Dyadic:
        product = [0] * (len(self.numerators) + len(other.numerators) - 1)
        for i, a in enumerate(self.numerators):
            if a:
                for j, b in enumerate(other.numerators):
                    product[i + j] += a * b
        return Dyadic(tuple(product), self.exponent + other.exponent)


def dyadic(*parts: float) -> Dyadic:
    """The exact sum of some floats, as a constant polynomial."""
    exponent = 1100
    total = 0
    for part in parts:
        numerator, denominator = float(part).as_integer_ratio()
        total += (numerator << exponent) // denominator
    shift = (total & -total).bit_length() - 1 if total else exponent
    shift = min(shift, exponent)
    return Dyadic((total >> shift,), exponent - shift)


def combine(weights: Sequence[Dyadic], tokens: Sequence[Dyadic]) -> Dyadic:
    """Σ wᵢ tᵢ for constants wᵢ, exactly."""
    terms = [w * t for w, t in zip(weights, tokens, strict=True) if w.numerators[0]]
    if not terms:
        return Dyadic((0,), 0)
    exponent = max(term.exponent for term in terms)
    total = [0] * max(len(term.numerators) for term in terms)
    for term in terms:
        for k, a in enumerate(term.numerators):
            total[k] += a << (exponent - term.exponent)
    return Dyadic(tuple(total), exponent)


def polynomial(network) -> Dyadic:
    """The exact polynomial of an ``EquivariantTransformer``, its weights the unevaluated sums of both parts."""
    pair = {}
    for name in ("scores", "values", "readout"):
        high = getattr(network, name).detach().double().cpu().tolist()
        low = getattr(network, f"{name}_low").detach().double().cpu().tolist()
        pair[name] = (high, low)

    def row(name: str, index: int, length: int) -> list[Dyadic]:
        high, low = pair[name]
        return [dyadic(high[index][i], low[index][i]) for i in range(length)]

    tokens = [Dyadic((0, 1), 0)]
    for h in range(network.products):
        tokens.append(combine(row("scores", h, h + 1), tokens) * combine(row("values", h, h + 1), tokens))
    high, low = pair["readout"]
    return combine([dyadic(a, b) for a, b in zip(high, low, strict=True)], [Dyadic((1,), 0), *tokens])


def error_coefficients(p: Dyadic, terms: int) -> np.ndarray:
    """Taylor coefficients c_0 … c_terms of p(z)e^{−z} − 1, each correctly rounded to float64."""
    factorial = math.factorial(terms)
    weights = [factorial // math.factorial(k) * (-1) ** k for k in range(terms + 1)]
    denominator = factorial << p.exponent
    coefficients = []
    for k in range(terms + 1):
        total = sum(p.numerators[j] * weights[k - j] for j in range(min(k, len(p.numerators) - 1) + 1))
        if k == 0:
            total -= denominator
        coefficients.append(total / denominator)
    return np.array(coefficients)


@dataclass(frozen=True)
class ExponentialError:
    """f(z) = p(z)e^{−z} − 1 by its Taylor coefficients, with a bound of what they leave out."""

    coefficients: np.ndarray
    polynomial: np.ndarray  # |coefficients of p|, for the tail

    @classmethod
    def of(cls, network) -> ExponentialError:
        """From an ``EquivariantTransformer``."""
        p = polynomial(network)
        terms = len(p.numerators) + 60
        scale = 1 << p.exponent
        return cls(error_coefficients(p, terms), np.array([abs(a) / scale for a in p.numerators]))

    def tail(self, radius: float) -> float:
        """Σ_{k > K} |c_k| ρ^k ≤ Σⱼ |p_j| ρʲ Σ_{i > K−j} ρⁱ/i!, the inner sum at most twice its first term."""
        total = 0.0
        last = len(self.coefficients) - 1
        for j, a in enumerate(self.polynomial):
            i = last - j + 1
            if radius > (i + 1) / 2:
                raise ValueError(
                    f"radius {radius} is too large for {last} Taylor terms; at most {(i + 1) / 2}"
                )
            total += (
                a * radius**j * 2 * math.exp(i * math.log(radius) - math.lgamma(i + 1)) if radius else 0.0
            )
        return total

    def disc(self, radius: float) -> float:
        """A rigorous upper bound of max |f(z)| over |z| ≤ ρ: grid, Lipschitz remainder, tail, rounding."""
        degree = np.arange(len(self.coefficients))
        scaled = self.coefficients * radius**degree
        grid = np.abs(np.fft.fft(scaled, GRID)).max()
        lipschitz = math.pi / GRID * float((degree * np.abs(scaled)).sum())
        return float((grid + lipschitz + 1e-13 * np.abs(scaled).sum()) * ROUNDING + self.tail(radius))

    def majorant(self, radius: float, ratio: float = 1.0) -> float:
        """Σ_{even} |c_k| β^k + ratio · Σ_{odd} |c_k| β^k with β = ``radius``, ratio = max(1, ‖A‖/β)."""
        scaled = np.abs(self.coefficients) * radius ** np.arange(len(self.coefficients))
        return float((scaled[::2].sum() + ratio * scaled[1::2].sum()) * ROUNDING + ratio * self.tail(radius))

    def radius(self, epsilon: float, bound: str = "disc", **options: float) -> float:
        """The largest radius (to four digits, rounded down) whose bound is at most ``epsilon``."""
        low, high = 0.0, 0.5 * (len(self.coefficients) - len(self.polynomial) + 1)
        evaluate = getattr(self, bound)
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if evaluate(middle, **options) <= epsilon else (low, middle)
        if low == 0.0:
            return 0.0
        digits = 3 - math.floor(math.log10(low))
        return math.floor(low * 10**digits) / 10**digits


@lru_cache(maxsize=64)
def _half_plane_minimum(coefficients: tuple[float, ...], radius: float) -> float:
    """Min over θ of Re p(ρe^{iθ})/(ρ cos θ) for odd p of degree ≤ 5; exact up to rounding."""
    a, b, c = (*coefficients, 0.0, 0.0)[:3]
    b, c = b * radius**2, c * radius**4
    # cos 3θ / cos θ = 4t − 3 and cos 5θ / cos θ = 16t² − 20t + 5 with t = cos² θ in [0, 1]
    quadratic, linear, constant = 16 * c, 4 * b - 20 * c, a - 3 * b + 5 * c
    candidates = [0.0, 1.0]
    if quadratic and 0 < (vertex := -linear / (2 * quadratic)) < 1:
        candidates.append(vertex)
    return min(quadratic * t * t + linear * t + constant for t in candidates)


def half_plane_radius(coefficients: Sequence[float]) -> float:
    """The largest R with Re p(z) > 0 for Re z > 0, |z| ≤ R, for p(z) = az + bz³ + cz⁵ with a > 0.

    On the imaginary axis an odd real polynomial is imaginary, so by the minimum principle for the harmonic function
    Re p only the arc matters; there Re p / (R cos θ) is a quadratic in cos² θ, whose minimum is explicit.

    Returns:
        R rounded down to four digits; 0 where a ≤ 0.
    """
    key = tuple(float(x) for x in coefficients)
    if not key[0] > 0:
        return 0.0
    low, high = 0.0, 4.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _half_plane_minimum(key, middle) > 1e-12 else (low, middle)
    return math.floor(low * 1e4) / 1e4
