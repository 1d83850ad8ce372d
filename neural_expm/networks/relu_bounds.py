"""Proven error bounds of the constructed ReLU networks, in 60-digit arithmetic.

Notation: δ = n²·4^{−(m+1)} is the relative error of one matrix product (Lemma 3 of `relu_blocks`), m the
number of sawteeth. All bounds are about the network in exact arithmetic; rounding comes on top
(``recipe.rounding``).

**Exponential**, ‖A‖_∞ ≤ R. With r = R/2^s and P the Taylor polynomial of degree d, N(A) is the computed
P(A/2^s), squared s times.

  *Majorants.* Run the scheme on norms with absolute coefficients: x is the plain majorant of a matrix X
  (‖X‖ ≤ x), and x̂ the same with every product multiplied by 1 + δ. Claim: ‖X̂‖ ≤ x̂ and ‖X̂ − X‖ ≤ x̂ − x
  for the computed X̂. Sums with coefficients of any sign keep both. For a product,

    ‖mm(X̂,Ŷ) − XY‖ ≤ δx̂ŷ + ‖X̂ − X‖‖Ŷ‖ + ‖X‖‖Ŷ − Y‖ ≤ δx̂ŷ + (x̂ − x)ŷ + x(ŷ − y) = (1 + δ)x̂ŷ − xy,
    ‖mm(X̂,Ŷ)‖ ≤ (1 + δ)x̂ŷ. ∎

  *Theorem 1.* With P_δ(r) the inflated majorant of the polynomial and e₀ = (P_δ(r) − P(r)) + (e^r − P(r)),

    ‖N(A) − e^A‖_∞ ≤ (1 + δ)^{2^s − 1} (e^r + e₀)^{2^s} − e^R.

  *Proof.* The Taylor remainder is ≤ e^r − P(r), so the computed polynomial is within e₀ of e^{A/2^s}, whose
  plain majorant is e^r: take e^r + e₀ for the inflated one. Each squaring maps (x̂, x) to ((1 + δ)x̂², x²).
  ∎

  The theorem is relative to e^R by nature. Relative to e^A itself, in the ∞-norm and in the Frobenius norm,
  at most a factor e^R is lost: tr A/n ≥ −R, so ‖e^A‖_∞ ≥ |det e^A|^{1/n} = e^{tr A/n} ≥ e^{−R}; and ‖e^A‖_F
  ≥ √n e^{tr A/n} while ‖E‖_F ≤ √n ‖E‖_∞.

**Square root**, A symmetric with spectrum in [lo, hi]. Coupled Newton–Schulz with minimax coefficients: Y₀
= A/hi, Z₀ = I; T_k = a_k I − b_k Z_k Y_k, Y_{k+1} = Y_k T_k, Z_{k+1} = T_k Z_k; the result is √hi·Y_K.

  *Exact iterates.* All are polynomials in A/hi. At an eigenvalue λ of A/hi let w = zy. Then w' = w(a −
  bw)², and y/z stays λ, so y = √(λw), z = √(w/λ) as long as a − bw > 0. If w ∈ [l, u], then a/b = l + √(lu)
  + u > u makes T positive definite, and w' lies between the least and the greatest of p(l), p(u), p(a/3b),
  where p(w) = w(a − bw)² and the last counts if l < a/3b < u. So

    ‖Y‖₂ ≤ √u,   ‖Z‖₂ ≤ min(√(u·hi/lo), product of the ‖T‖₂ so far),   ‖T‖₂ ≤ a − bl,
    ‖Y_K − (A/hi)^{1/2}‖ ≤ max(1 − √l_K, √u_K − 1)·‖(A/hi)^{1/2}‖.

  *Computed iterates.* With Frobenius errors e_Y, e_Z, e_T and 2-norm bounds ŷ = ‖Y‖ + e_Y, ẑ = ‖Z‖ + e_Z,
  t̂ = ‖T‖ + e_T, as ‖XE‖_F ≤ ‖X‖₂‖E‖_F,

    e_T = b(e_Z ŷ + ‖Z‖e_Y + δẑŷ),   e_Y' = e_Y t̂ + ‖Y‖e_T + δŷt̂,   e_Z' = e_T ẑ + ‖T‖e_Z + δt̂ẑ.

  *Theorem 2.* ‖N(A) − A^{1/2}‖ ≤ [max(1 − √l_K, √u_K − 1) + e_Y √(hi/lo)]·‖A^{1/2}‖, 2-norm and Frobenius
  norm.
  *Proof.* ‖A^{1/2}‖_F ≥ ‖A^{1/2}‖₂ ≥ √lo, and √hi·e_Y/√lo = e_Y√(hi/lo). ∎

The coefficients make the cubic x(a − bx²), x = √w, equioscillate around 1 on [√l, √u]: the optimal cubic of
the sign iteration (Higham, Functions of Matrices, 2008, ch. 5 and 6; Amsel et al., arXiv 2505.16932).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext

# Paterson–Stockmeyer schemes: degree → (matrix powers q, blocks b); products (q − 1) + (b − 1).
SCHEMES = {2: (2, 1), 4: (2, 2), 6: (3, 2), 9: (3, 3), 12: (4, 3), 16: (4, 4)}
_DIGITS = Context(prec=60)


@dataclass(frozen=True)
class ExpBound:
    """Theorem 1, and the norms that size the network's boxes (all in the ∞-norm)."""

    absolute: float  # ‖N(A) − e^A‖ ≤ absolute
    relative_to_radius: float  # the same over e^R
    relative: float  # ‖N(A) − e^A‖ ≤ relative·‖e^A‖, ∞-norm and Frobenius
    powers: tuple[float, ...]  # inflated majorants of A/2^s, (A/2^s)², …
    horner: tuple[float, ...]  # … of the left-to-right Horner values, first the top block
    squares: tuple[float, ...]  # … of the polynomial and its repeated squares but the last


@dataclass(frozen=True)
class SqrtBound:
    """Theorem 2, and per step the coefficients and the norms that size the boxes (2-norm)."""

    relative: float
    truncation: float
    steps: tuple[SqrtStep, ...]


@dataclass(frozen=True)
class SqrtStep:
    """T = a I − b Z Y; y, z, t bound the computed Y, Z, T."""

    a: float
    b: float
    y: float
    z: float
    t: float


def product_inflation(n: int, sawteeth: int) -> Decimal:
    """δ = n²·4^{−(m+1)} of Lemma 3."""
    return Decimal(n * n) / Decimal(4) ** (sawteeth + 1)


def taylor_blocks(degree: int) -> list[list[Decimal]]:
    """Taylor coefficients 1/k! in Paterson–Stockmeyer blocks, lowest first; the last block has one more.

    P(A) = Σ_i B_i(A)·(A^q)^i with B_i of degree < q, save the top one whose degree is q.
    """
    powers, blocks = SCHEMES[degree]
    coefficients = [Decimal(1)]
    for k in range(1, degree + 1):
        coefficients.append(coefficients[-1] / k)
    cut = [coefficients[i * powers : (i + 1) * powers] for i in range(blocks)]
    cut[-1].append(coefficients[-1])
    return cut


def exp_bound(n: int, radius: float, degree: int, squarings: int, sawteeth: int) -> ExpBound:
    """Theorem 1 for ‖A‖_∞ ≤ radius.

    Source: the triangle inequality, as derived at the top of this file.
    """
    with localcontext(_DIGITS):
        big_r = Decimal(radius)
        r = big_r / 2**squarings
        inflation = 1 + product_inflation(n, sawteeth)
        powers, horner = _polynomial_majorants(r, degree, inflation)
        plain = _polynomial_majorants(r, degree, Decimal(1))[1][-1]
        remainder = r.exp() - plain
        squares = [horner[-1]]
        for _ in range(squarings - 1):
            squares.append(inflation * squares[-1] ** 2)
        e0 = (horner[-1] - plain) + remainder
        count = 2**squarings
        absolute = inflation ** (count - 1) * (r.exp() + e0) ** count - big_r.exp()
        return ExpBound(
            _up(absolute),
            _up(absolute / big_r.exp()),
            _up(absolute * big_r.exp()),
            tuple(map(_up, powers)),
            tuple(map(_up, horner)),
            tuple(map(_up, squares)) if squarings else (),
        )


def _polynomial_majorants(r: Decimal, degree: int, inflation: Decimal) -> tuple[list[Decimal], list[Decimal]]:
    """Majorants of the powers 1…q of A/2^s and of the Horner values, each product times `inflation`."""
    count, _ = SCHEMES[degree]
    powers = [r]
    while len(powers) < count:
        powers.append(inflation * powers[-1] * r)
    values = [
        block[0] + sum((c * x for c, x in zip(block[1:], powers, strict=False)), Decimal(0))
        for block in taylor_blocks(degree)
    ]
    horner = [values[-1]]
    for value in reversed(values[:-1]):
        horner.append(value + inflation * powers[-1] * horner[-1])
    return powers, horner


def sqrt_bound(n: int, low: float, high: float, steps: int, sawteeth: int) -> SqrtBound:
    """Theorem 2 for a symmetric A with spectrum in [low, high]."""
    with localcontext(_DIGITS):
        delta = product_inflation(n, sawteeth)
        floor = Decimal(low) / Decimal(high)
        w_low, w_high = floor, Decimal(1)
        z_norm, e_y, e_z = Decimal(1), Decimal(0), Decimal(0)
        rows = []
        for k in range(steps):
            a, b = minimax_cubic(w_low, w_high)
            y_norm = w_high.sqrt()
            z_norm = min(z_norm, (w_high / floor).sqrt())
            t_norm = a - b * w_low
            y_hat, z_hat = y_norm + e_y, z_norm + e_z
            # The first step multiplies nothing to form ZY = A, and forms Z' = T as it is.
            e_t = b * (e_z * y_hat + z_norm * e_y + delta * z_hat * y_hat) if k else Decimal(0)
            t_hat = t_norm + e_t
            rows.append(SqrtStep(float(a), float(b), _up(y_hat), _up(z_hat), _up(t_hat)))
            e_y = e_y * t_hat + y_norm * e_t + delta * y_hat * t_hat
            e_z = (e_t * z_hat + t_norm * e_z + delta * t_hat * z_hat) if k else Decimal(0)
            z_norm *= t_norm
            w_low, w_high = _next_interval(w_low, w_high, a, b)
        truncation = max(1 - w_low.sqrt(), w_high.sqrt() - 1)
        return SqrtBound(_up(truncation + e_y / floor.sqrt()), _up(truncation), tuple(rows))


def minimax_cubic(low: Decimal, high: Decimal) -> tuple[Decimal, Decimal]:
    """(a, b), exact in float64, of the cubic x(a − bx²) closest to 1 for x² in [low, high].

    Equal values at both ends: a = b(x² + xX + X²); the maximum lies at x² = a/3b; b scales the mean of both
    to 1.
    """
    ratio = low + (low * high).sqrt() + high
    end = low.sqrt() * (ratio - low)
    top = (ratio / 3).sqrt() * (ratio - ratio / 3)
    b = 2 / (end + top)
    return Decimal(float(b * ratio)), Decimal(float(b))


def _next_interval(low: Decimal, high: Decimal, a: Decimal, b: Decimal) -> tuple[Decimal, Decimal]:
    """The range of p(w) = w(a − bw)² on [low, high]."""
    values = [w * (a - b * w) ** 2 for w in (low, high, a / (3 * b)) if low <= w <= high]
    return min(values), max(values)


def _up(value: Decimal) -> float:
    """To float64, upwards: the result is never below `value`."""
    result = float(value)
    return result if Decimal(result) >= value else math.nextafter(result, math.inf)
