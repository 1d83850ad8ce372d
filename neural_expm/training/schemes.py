"""Where the minimax search starts: published evaluation schemes, random weights, and shallower solutions."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from . import taylor
from .minimax import count, polish, search, to_fixed

# Coefficients c₁ … c₁₆ of the degree-15+ Taylor scheme in 4 products: Sastre, Ibáñez, Defez, "Boosting the computation
# of the matrix exponential", Appl. Math. Comput. 340 (2019), table 4.
SASTRE = (
    4.018761610201036e-4, 2.945531440279683e-3, -8.709066576837676e-3, 4.017568440673568e-1,
    3.230762888122312e-2, 5.768988513026145e0, 2.338576034271299e-2, 2.381070373870987e-1,
    2.224209172496374e0, -5.792361707073261e0, -4.130276365929783e-2, 1.040801735231354e1,
    -6.331712455883370e1, 3.484665863364574e-1, 1.0, 1.0,
)  # fmt: skip


def sastre(products: int = 4) -> Tensor:
    """The scheme of ``SASTRE`` as a weight vector of ``minimax`` (4 products)."""
    c = (0.0, *SASTRE)
    theta = [0, 1, c[2], c[1]]  # A² (c₂ A + c₁ A²)
    theta += [c[4], c[3], 1, 0, c[5], 1]  # (y₀ + c₃ A² + c₄ A)(y₀ + c₅ A²)
    theta += [c[9], c[7] + c[8], c[6], 1, c[11], c[7], c[6] + c[10], 1]
    theta += [c[16], c[15], c[14] + c[12] * c[7], c[13] + c[12] * c[6], c[12], 1]
    return torch.tensor(theta, dtype=torch.float64)


def random_starts(products: int, starts: int, seed: int) -> Tensor:
    """Gaussian weights."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(starts, count(products), dtype=torch.float64, generator=generator)


# Radius on which the float64 schemes of 5 and 6 products are polished last.
FARTHEST = {5: 2.117, 6: 4.118}


@lru_cache(maxsize=8)
def start(products: int, epsilon: float) -> tuple[list[int], float]:
    """A fixed-point start for tolerances below float64, and the radius to polish it on."""
    if products <= 3:
        # Any polynomial of degree 2^m is within reach: find one scheme where float64 can see the error, then go down.
        degree = 2**products
        wide, radius = (
            (tolerance * math.factorial(degree + 1)) ** (1 / (degree + 1)) for tolerance in (6e-8, epsilon)
        )
        pool, _ = search(random_starts(products, 64, 0), products, wide, rounds=2, starts=16, seed=0)
        theta = to_fixed(pool[0])
        while wide > radius:
            wide = max(0.8 * wide, radius)
            theta, _ = polish(theta, products, wide)
        return theta, radius
    if products == 4:
        theta, radius = to_fixed(sastre()), 0.69
        return polish(theta, 4, radius, 200)[0], radius
    # A scheme that matches the Taylor series to high order, found from random starts, then pushed outwards.
    theta, _ = taylor.start(5)
    for _ in range(products - 5):
        theta = taylor.lift_fixed(theta, 5)
    return theta, FARTHEST[products]
