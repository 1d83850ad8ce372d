"""Evaluation schemes that agree with the Taylor series of exp to high order: starts for fits below float64.

m products have about m² free directions, so a scheme can match about m² Taylor coefficients.  Sastre (2018,
Linear Algebra Appl. 539, 229–250) and Bader, Blanes, Casas (2019, Mathematics 7(12), 1174) solve such systems
for chosen structures.  Here the general scheme of ``minimax`` is solved numerically: Levenberg–Marquardt on the
relative errors k!·p_k − 1, k ≤ order, so that all orders count alike, from many random starts, on power series
cut off after z^order.  The fit on a disc does not find these solutions by itself: at the radii of float64 the
high orders are 1e-16 of its residual.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .minimax import FRACTION_BITS, count, polish, split, to_fixed

START_SIZE = 0.7  # standard deviation of the random weights; 0.4 to 1 succeed about as often
STARTS = 96  # a batch
SOLVED = 1e-9  # root of the sum of squared relative coefficient errors, far below any local minimum (> 1e-5)
STUCK = 1e6  # damping at which no step helps any more
# (steps, residual norm that a start must reach to be kept) of each stage: most starts fail early.
STAGES = ((100, 0.05), (300, 2e-3), (1200, SOLVED))


def _multiplication(series: Tensor) -> Tensor:
    """(*, K+1) → (*, K+1, K+1): multiplication by a truncated power series, T[k, i] = series[k − i]."""
    return torch.nn.functional.pad(series, (series.shape[-1] - 1, 0)).unfold(-1, series.shape[-1], 1).flip(-1)


def coefficient_errors(theta: Tensor, products: int, order: int) -> tuple[Tensor, Tensor]:
    """Relative Taylor errors k!·p_k − 1 for k = 0 … order, and their derivatives.

    Args:
        theta: (starts, weights) float64, in the layout of :func:`minimax.split`.
        products: number of matrix products m.
        order: the last power of z.

    Returns:
        (starts, order + 1) and (starts, order + 1, weights).
    """
    heads, readout = split(theta, products)
    factorial = torch.tensor([float(math.factorial(k)) for k in range(order + 1)], dtype=torch.float64)
    tokens = torch.eye(order + 1, 3, dtype=torch.float64).expand(len(theta), -1, -1)  # columns: I, A, A²
    factors = []
    for scores, values in heads:
        seen = tokens[:, :, 1:]
        q, v = seen @ scores[:, :, None], seen @ values[:, :, None]
        factors.append((_multiplication(q[:, :, 0]), _multiplication(v[:, :, 0])))
        tokens = torch.cat([tokens, factors[-1][0] @ v], 2)
    residual = (tokens @ readout[:, :, None])[:, :, 0] * factorial - 1
    # Column i of the adjoint: the series that multiplies a change of token i on its way into p.
    adjoint = torch.nn.functional.pad(readout[:, None, :], (0, 0, 0, order))
    columns = [tokens]
    for h in range(products, 1, -1):
        (q, v), (scores, values) = factors[h - 2], heads[h - 2]
        by_score, by_value = v @ adjoint[:, :, h + 1 :], q @ adjoint[:, :, h + 1 :]
        seen = tokens[:, :, 1 : h + 1]
        columns = [_multiplication(by[:, :, 0]) @ seen for by in (by_score, by_value)] + columns
        earlier = adjoint[:, :, 1 : h + 1] + by_score * scores[:, None] + by_value * values[:, None]
        adjoint = torch.cat([adjoint[:, :, :1], earlier], 2)
    return residual, torch.cat(columns, 2) * factorial[:, None]


def match(theta: Tensor, products: int, order: int) -> Tensor:
    """The starts that Levenberg–Marquardt brings to agreement with exp up to z^order.

    Args:
        theta: (starts, weights) float64.
        products: number of matrix products m.
        order: the last power of z that counts.

    Returns:
        (solved, weights), possibly none.
    """
    eye = torch.eye(order + 1, dtype=torch.float64)
    damping = torch.full((len(theta),), 0.1, dtype=torch.float64)
    residual, jacobian = coefficient_errors(theta, products, order)
    solved = [theta[:0]]
    for steps, limit in STAGES:
        for step in range(1, steps + 1):
            scale = theta.abs() + 0.05  # steps are relative to the size of a weight
            scaled = jacobian * scale[:, None]
            gram = scaled @ scaled.mT + damping[:, None, None] * eye
            factor, failed = torch.linalg.cholesky_ex(gram)
            trial = theta - scale * (scaled.mT @ torch.cholesky_solve(residual[:, :, None], factor))[:, :, 0]
            trial_residual, trial_jacobian = coefficient_errors(trial, products, order)
            better = (trial_residual.norm(dim=1) < residual.norm(dim=1)) & (failed == 0)
            theta = torch.where(better[:, None], trial, theta)
            residual = torch.where(better[:, None], trial_residual, residual)
            jacobian = torch.where(better[:, None, None], trial_jacobian, jacobian)
            damping = torch.where(better, damping * 0.3, damping * 4).clamp_min(1e-15)
            if step % 25 == 0 or step == steps:
                error = residual.norm(dim=1)
                solved.append(theta[error < SOLVED])
                kept = (error >= SOLVED) & (damping < STUCK) & ((error < limit) | (step < steps))
                theta, residual, jacobian, damping = (
                    theta[kept],
                    residual[kept],
                    jacobian[kept],
                    damping[kept],
                )
            if not len(theta):
                return torch.cat(solved)
    return torch.cat(solved)


def random_schemes(products: int, order: int, seed: int) -> Iterator[Tensor]:
    """Schemes that match exp up to z^order, one (weights,) at a time, without end; seeded."""
    generator = torch.Generator().manual_seed(seed)
    # Scale 2 in z: larger scales solve rarely, smaller ones leave large coefficients beyond the order.
    scale = torch.full((count(products),), START_SIZE, dtype=torch.float64)
    heads, readout = split(scale, products)
    for row in [part for head in heads for part in head] + [readout[1:]]:
        row[:2] /= torch.tensor([2.0, 4.0], dtype=torch.float64)
    while True:
        noise = torch.randn(STARTS, count(products), dtype=torch.float64, generator=generator)
        yield from match(noise * scale, products, order)


def amplification(theta: list[int], products: int, radius: float) -> float:
    """How much rounding can grow, 1 at best: the scheme with |weights| at z = radius, over e^radius."""
    weights = torch.tensor([abs(w / (1 << FRACTION_BITS)) for w in theta], dtype=torch.float64)
    heads, readout = split(weights, products)
    tokens = torch.tensor([1.0, radius, radius**2], dtype=torch.float64)
    for scores, values in heads:
        tokens = torch.cat([tokens, (scores @ tokens[1:] * (values @ tokens[1:]))[None]])
    return float(readout @ tokens) / math.exp(radius)


# products → (order matched, radius, ε to reach on it).  With 5 products schemes of order 23 are found too, but
# their next coefficients are large, and those decide ε on a disc.
FLOAT64 = {4: (15, 0.69, 1.1e-16), 5: (22, 2.09, 1.1e-16)}
LARGEST_AMPLIFICATION = 8.0  # keeps float64 rounding near that of one matrix product


def start(products: int, seed: int = 0) -> tuple[list[int], float]:
    """Weights for float64: the first Taylor scheme that is good after a fit; past 5 products, its square.

    Args:
        products: 4 or more.  5 and more take minutes on one core.
        seed: of the random starts.

    Returns:
        Fixed-point weights as :func:`minimax.polish` returns them, and a radius on which they reach 1.1e-16.
    """
    if products > max(FLOAT64):
        theta, radius = start(products - 1, seed)
        # Squaring doubles the error: 3 % less radius.  A fit gains little: the square is a fold.
        return lift_fixed(theta, products - 1), 1.94 * radius
    order, radius, target = FLOAT64[products]
    for scheme in random_schemes(products, order, seed):
        theta = to_fixed(scheme)
        # From wide to narrow: where the error is large the fit also tames the coefficients beyond the order.
        for wide in (1.25, 1.1, 1.0):
            theta, epsilon = polish(theta, products, wide * radius)
        if epsilon <= target and amplification(theta, products, radius) <= LARGEST_AMPLIFICATION:
            break
    return theta, radius


def lift_fixed(theta: list[int], products: int) -> list[int]:
    """:func:`minimax.lift` in fixed point: weights of p(z/2)², no digit lost to float64."""
    heads, readout = split(np.array(theta, dtype=object), products)
    halved = [[(row[0] + 1) >> 1, (row[1] + 2) >> 2, *row[2:]] for head in heads for row in head]
    identity, rest = readout[0], [readout[1] >> 1, readout[2] >> 2, *readout[3:]]
    square = [(identity * weight) >> FRACTION_BITS for weight in (identity, *(2 * w for w in rest))]
    return [w for row in [*halved, rest, rest, square] for w in row] + [1 << FRACTION_BITS]
