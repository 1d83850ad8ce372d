"""Minimax fit of an equivariant transformer to exp on a disc, in as much precision as the target asks for.

Minimise ε = max_{|z| = ρ} |p(z)e^{−z} − 1| over the weights: Levenberg–Marquardt on a grid of the circle, batched
over many starts, inside a search that perturbs the best and fits again.  The map from weights to polynomials has folds
and many local minima, so the search matters more than the step.  For targets below float64 the residual comes from
Taylor coefficients in fixed-point integers (the Jacobian stays in float64: a step needs few digits, a residual all).
"""

from __future__ import annotations

import math
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

FRACTION_BITS = 256  # of the fixed-point weights in :func:`polish`


def count(products: int) -> int:
    """Number of free weights: (h scores, h values) for heads 2 … m, then m + 2 of the read-out."""
    return sum(2 * h for h in range(2, products + 1)) + products + 2


def split(theta, products: int):
    """(scores, values) per head 2 … m, and the read-out, as slices of the last axis."""
    heads, start = [], 0
    for h in range(2, products + 1):
        heads.append((theta[..., start : start + h], theta[..., start + h : start + 2 * h]))
        start += 2 * h
    return heads, theta[..., start:]


@overload
def evaluate(theta: Tensor, z: Tensor, products: int, derivative: Literal[False]) -> tuple[Tensor, None]: ...
@overload
def evaluate(theta: Tensor, z: Tensor, products: int, derivative: Literal[True]) -> tuple[Tensor, Tensor]: ...
def evaluate(theta: Tensor, z: Tensor, products: int, derivative: bool) -> tuple[Tensor, Tensor | None]:
    """p(z) of each weight vector at each point, and ∂p/∂θ.

    Args:
        theta: (starts, weights) float64.
        z: (points,) complex128.

    Returns:
        (starts, points) and (starts, weights, points) complex128.
    """
    heads, readout = split(theta.to(torch.complex128), products)
    one = torch.ones(theta.shape[0], z.shape[0], dtype=torch.complex128)
    tokens = [one * z, one * z * z]
    factors = []
    for scores, values in heads:
        seen = torch.stack(tokens, 1)
        factors.append(((scores[:, :, None] * seen).sum(1), (values[:, :, None] * seen).sum(1)))
        tokens.append(factors[-1][0] * factors[-1][1])
    seen = torch.stack([one, *tokens], 1)
    p = (readout[:, :, None] * seen).sum(1)
    if not derivative:
        return p, None
    adjoint = [readout[:, i + 1, None] * one for i in range(products + 1)]
    columns: list[Tensor] = []
    for h in range(products, 1, -1):
        (scores, values), (q, v), a = heads[h - 2], factors[h - 2], adjoint[h]
        earlier = seen[:, 1 : h + 1]
        columns = [(a * v)[:, None] * earlier, (a * q)[:, None] * earlier, *columns]
        for i in range(h):
            adjoint[i] = adjoint[i] + a * (v * scores[:, i, None] + q * values[:, i, None])
    return p, torch.cat([*columns, seen], 1)


def _circle(products: int, radius: float) -> Tensor:
    points = 6 * 2 ** min(products, 4)
    angle = (torch.arange(points, dtype=torch.float64) + 0.5) * (math.pi / points)
    return radius * torch.exp(1j * angle)


def _damped_step(jacobian: Tensor, residual: Tensor, damping: Tensor) -> Tensor:
    """Levenberg–Marquardt step by QR, columns scaled to unit length (Moré 1978)."""
    J = torch.cat([jacobian.real, jacobian.imag], 1)
    r = torch.cat([residual.real, residual.imag], 1)
    size = J.shape[2]
    scale = J.norm(dim=1).clamp_min(1e-300)
    eye = torch.eye(size, dtype=J.dtype)
    J = torch.cat([J / scale[:, None], damping.sqrt()[:, None, None] * eye], 1)
    r = torch.cat([r, r.new_zeros(r.shape[0], size)], 1)
    Q, R = torch.linalg.qr(J)
    return torch.linalg.solve_triangular(R, Q.mT @ r[:, :, None], upper=True)[:, :, 0] / scale


def fit(
    theta: Tensor, products: int, radius: float, steps: int, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Levenberg–Marquardt from each start, in float64.

    Args:
        theta: (starts, weights).
        weight: (starts, points) of the least-squares problem; None for equal ones.

    Returns:
        The fitted weights and ε on the grid, (starts,); inf where a start broke down.
    """
    z = _circle(products, radius)
    inverse = torch.exp(-z)
    weight = torch.ones(theta.shape[0], z.shape[0], dtype=torch.float64) if weight is None else weight

    def residual_of(t: Tensor) -> Tensor:
        return (evaluate(t, z, products, False)[0] * inverse - 1) * weight

    damping = torch.full((theta.shape[0],), 1e-3, dtype=torch.float64)
    residual = residual_of(theta)
    cost = residual.abs().square().mean(1)
    for _ in range(steps):
        jacobian = evaluate(theta, z, products, True)[1]
        step = _damped_step((jacobian * (inverse * weight)[:, None]).transpose(1, 2), residual, damping)
        trial = theta - step
        trial_residual = residual_of(trial)
        trial_cost = trial_residual.abs().square().mean(1)
        better = trial_cost < cost
        theta = torch.where(better[:, None], trial, theta)
        residual = torch.where(better[:, None], trial_residual, residual)
        cost = torch.where(better, trial_cost, cost)
        damping = torch.where(better, damping * 0.2, damping * 5).clamp(1e-30, 1e8)
    return theta, torch.nan_to_num((residual / weight).abs().amax(1), nan=math.inf)


def equalise(theta: Tensor, products: int, radius: float, rounds: int = 12) -> tuple[Tensor, Tensor]:
    """From least squares to minimax: Lawson's re-weighting, which gives weight to the points of large error.

    Args:
        theta: (starts, weights), fitted.

    Returns:
        The weights of the smallest ε met on the way, and that ε, (starts,).

    Source: Lawson (1961); Ellacott & Williams (1976), SIAM J. Numer. Anal. 13(1), for complex approximation.
    """
    z = _circle(products, radius)
    inverse = torch.exp(-z)
    weight = torch.ones(theta.shape[0], z.shape[0], dtype=torch.float64)
    theta, epsilon = fit(theta, products, radius, 200)
    best, best_epsilon = theta, epsilon
    for _ in range(rounds):
        error = (evaluate(theta, z, products, False)[0] * inverse - 1).abs()
        weight = weight * (error / error.mean(1, keepdim=True)).sqrt()
        weight = weight / weight.mean(1, keepdim=True)
        theta, epsilon = fit(theta, products, radius, 60, weight)
        better = epsilon < best_epsilon
        best = torch.where(better[:, None], theta, best)
        best_epsilon = torch.where(better, epsilon, best_epsilon)
    return best, best_epsilon


def search(
    theta: Tensor, products: int, radius: float, *, rounds: int, starts: int, seed: int, keep: int = 16
) -> tuple[Tensor, Tensor]:
    """Perturb the best fits, fit again, keep the best distinct ones.

    Args:
        theta: (any, weights) first starts.
        rounds, starts: perturbation rounds, and perturbed starts in each.
        keep: size of the pool.

    Returns:
        The pool and its ε, best first.
    """
    generator = torch.Generator().manual_seed(seed)
    pool, epsilon = fit(theta, products, radius, 200)
    for _ in range(rounds):
        order = epsilon.argsort()
        pool, epsilon = pool[order], epsilon[order]
        chosen = (torch.rand(starts, generator=generator) ** 2 * len(pool)).long().clamp_max(len(pool) - 1)
        noise = torch.randn(starts, pool.shape[1], dtype=torch.float64, generator=generator)
        size = 10 ** (torch.rand(starts, 1, dtype=torch.float64, generator=generator) * 2.5 - 2.5)
        trial, trial_epsilon = fit(pool[chosen] * (1 + size * noise), products, radius, 100)
        trial, trial_epsilon = fit(trial[trial_epsilon.argsort()[:8]], products, radius, 300)
        pool, epsilon = torch.cat([pool, trial]), torch.cat([epsilon, trial_epsilon])
        distinct: list[int] = []
        for index in epsilon.argsort().tolist():
            if not distinct or epsilon[index] > epsilon[distinct[-1]] * 1.002:
                distinct.append(index)
        pool, epsilon = pool[distinct[:keep]], epsilon[distinct[:keep]]
    return pool, epsilon


def lift(theta: Tensor, products: int) -> Tensor:
    """Weights of p(z/2)² with one product more: where a deeper network starts, with twice the radius."""
    heads, readout = split(theta.clone(), products)
    for scores, values in heads:
        for row in (scores, values):
            row[..., 0] /= 2
            row[..., 1] /= 4
    readout[..., 1] /= 2
    readout[..., 2] /= 4
    identity, rest = readout[..., :1], readout[..., 1:]
    parts = [part for head in heads for part in head]
    return torch.cat([*parts, rest, rest, identity**2, 2 * identity * rest, torch.ones_like(identity)], -1)


# --- below float64 -------------------------------------------------------------------------------------------------


def to_fixed(theta: Tensor) -> list[int]:
    """float64 weights as fixed-point integers with FRACTION_BITS bits, exactly or rounded down."""
    return [(a << FRACTION_BITS) // b for a, b in (float(x).as_integer_ratio() for x in theta.tolist())]


def from_fixed(theta: list[int]) -> tuple[Tensor, Tensor]:
    """The unevaluated sum of two float64 closest to the fixed-point weights: (high, low)."""
    scale = 1 << FRACTION_BITS
    high = [x / scale for x in theta]
    low = [
        (x - (h.as_integer_ratio()[0] << FRACTION_BITS) // h.as_integer_ratio()[1]) / scale
        for x, h in zip(theta, high, strict=True)
    ]
    return torch.tensor(high, dtype=torch.float64), torch.tensor(low, dtype=torch.float64)


def _fixed_error_coefficients(theta: list[int], products: int, terms: int) -> np.ndarray:
    """Taylor coefficients of p(z)e^{−z} − 1 to float64 precision, from fixed-point weights."""
    half = 1 << (FRACTION_BITS - 1)
    one = 1 << FRACTION_BITS

    def combine(weights, tokens):
        total = np.zeros(max(len(t) for t in tokens), dtype=object)
        for weight, token in zip(weights, tokens, strict=True):
            total[: len(token)] += weight * token
        return (total + half) >> FRACTION_BITS

    weights = np.array(theta, dtype=object)
    heads, readout = split(weights, products)
    tokens = [np.array([0, one], dtype=object), np.array([0, 0, one], dtype=object)]
    for scores, values in heads:
        tokens.append((np.convolve(combine(scores, tokens), combine(values, tokens)) + half) >> FRACTION_BITS)
    p = combine(readout, [np.array([one], dtype=object), *tokens])
    series = np.array([(-1) ** k * one // math.factorial(k) for k in range(terms + 1)], dtype=object)
    f = np.convolve(p, series)[: terms + 1] >> FRACTION_BITS
    f[0] -= one
    return np.array([int(c) / one for c in f])


def polish(theta: list[int], products: int, radius: float, steps: int = 60) -> tuple[list[int], float]:
    """Levenberg–Marquardt with residuals free of float64's rounding.

    Args:
        theta: fixed-point weights of one network, near a solution.

    Returns:
        The fitted fixed-point weights and ε on the grid.
    """
    z = _circle(products, radius)
    terms = min(
        2**products + 50, 80
    )  # each rounded to 2^−256, then multiplied by ρ^k: more terms lose digits
    powers = torch.stack([z**k for k in range(terms + 1)])
    inverse = torch.exp(-z)

    def residual_of(t: list[int]) -> Tensor:
        c = torch.from_numpy(_fixed_error_coefficients(t, products, terms))
        return (c[:, None] * powers).sum(0)

    residual, damping = residual_of(theta), 1e-8
    cost = float(residual.abs().square().mean())
    for _ in range(steps):
        now = torch.tensor([[x / (1 << FRACTION_BITS) for x in theta]], dtype=torch.float64)
        jacobian = evaluate(now, z, products, True)[1]
        damped = torch.tensor([damping], dtype=torch.float64)
        step = _damped_step((jacobian * inverse).transpose(1, 2), residual[None], damped)[0]
        trial = [x - y for x, y in zip(theta, to_fixed(step), strict=True)]
        trial_residual = residual_of(trial)
        trial_cost = float(trial_residual.abs().square().mean())
        if trial_cost < cost:
            theta, residual, cost, damping = trial, trial_residual, trial_cost, max(damping * 0.1, 1e-32)
        elif damping > 1e4:
            break
        else:
            damping *= 30
    return theta, float(residual.abs().max())
