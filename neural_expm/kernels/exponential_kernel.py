"""What native kernels of exp have in common: what they are asked, what they tell, their check."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import eager

# Products of a matrix, to judge how many threads a batch is worth.
VALUE_PRODUCTS, FRECHET_PRODUCTS = 8, 24
# Up to so many multiply-adds of a product, in single precision, matrices are sorted for so many products.
SORTED_FOR = ((64, 4), (256, 3), (600, 2))


def worth_sorting(n: int, dtype: torch.dtype) -> int:
    """How many products more of some matrices than of their neighbours make it worth the while to sort them."""
    real, parts = dtype.to_real(), 2 if dtype.is_complex else 1
    work = n**3 * parts**2 * real.itemsize // 4
    return next((products for most, products in SORTED_FOR if work <= most), 1)


class Rungs:
    """The rungs of a ladder.

    Args:
        radii: of each rung, increasing, in the real dtype of the matrices.
        majorants: radii for ‖A²‖^{1/2}, likewise (``Ladder.majorant_radii``), for kernels that form A² first.
        ratio: largest ‖A‖/‖A²‖^{1/2} for them.
        networks: for each rung the flat weights (``EquivariantTransformer.flat``), the read-out of I, and s.
        derivative_level: derivatives of matrices at lesser rungs are computed at this one.

    Attributes:
        products, deepest: of each rung, and the most of any.
        kept: what kernels have made of the rungs, by keys of theirs.
    """

    def __init__(
        self,
        radii: Tensor,
        majorants: Tensor,
        ratio: float,
        networks: list[tuple[Tensor, float, int]],
        derivative_level: int = 0,
    ) -> None:
        self.radii, self.majorants, self.ratio = radii, majorants, ratio
        self.networks, self.derivative_level = networks, derivative_level
        # Heads 2 … m take 2h weights each and the read-out m + 1: m² + 2m − 1 in all.
        self.products = [round((weights.shape[0] + 2) ** 0.5) - 1 for weights, _, _ in networks]
        self.deepest = max(self.products)
        self.kept: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.networks)


class Bound(NamedTuple):
    """The calls of a kernel for so many matrices that follow each other, with all bound that is the same in each.

    Attributes:
        value: of a contiguous A, shape (*, n, n), and the address of a uint8 for the rung of each matrix, 0 where
            nobody wants them: exp(A), or None where a matrix may be outside.
        frechet: of A, contiguous or the transpose of what is, a contiguous E of its shape, and the address of the
            rungs: L(A, E).
        kept: what the calls have the addresses of.
    """

    value: Callable[[Tensor, int], Tensor | None]
    frechet: Callable[[Tensor, Tensor, int], Tensor]
    kept: object


class ExponentialKernel:
    """exp and its Fréchet derivative for one n and dtype."""

    n: int
    dtype: torch.dtype

    @abstractmethod
    def value(self, A: Tensor, rungs: Rungs, trust: bool, out: Tensor | None) -> tuple[Tensor, bool]:
        """Out ← exp(A), each matrix by the first rung that reaches its norm (see the kernels), or a deeper one.

        Args:
            A: shape (batch, n, n), any strides.
            trust: what no rung reaches gets the last one.
            out: contiguous (batch, n, n); None to ask for the rungs alone.

        Returns:
            The rung of each matrix, (batch) uint8, the number of rungs for those outside, which ``out`` leaves unset;
            and whether there are any.
        """

    @abstractmethod
    def bound(self, count: int, rungs: Rungs) -> Bound:
        """The calls for ``count`` matrices."""

    @abstractmethod
    def frechet(self, A: Tensor, E: Tensor, rungs: Rungs, level: Tensor, out: Tensor) -> None:
        """Out ← L(A, E) by the rungs in ``level`` or that for derivatives; out contiguous, rows outside left unset."""

    def discrepancy(self) -> float:
        """Largest relative difference from the eager kernel, over a small batch with a fixed seed."""
        n, dtype, count = self.n, self.dtype, 19
        real = dtype.to_real()
        generator = torch.Generator().manual_seed(n)
        A, E = torch.randn(2, count, n, n, dtype=dtype, generator=generator) / n
        A[::3] *= 0.1
        networks = []
        for m in (2, 3):
            weights = [torch.rand(2, h, dtype=real, generator=generator) for h in range(2, m + 1)]
            networks.append([*weights, torch.rand(1, m + 1, dtype=real, generator=generator)])
        flat = [torch.cat([w.reshape(-1) for w in weights]) for weights in networks]
        radii = torch.tensor([0.3, 1e3], dtype=real)
        rungs = Rungs(radii, radii, 1.0, [(flat[0], 0.5, 0), (flat[1], -0.5, 2)])
        value, derivative, expected = torch.zeros_like(A), torch.zeros_like(A), torch.zeros_like(A)
        level, _ = self.value(A.mH, rungs, True, value)
        # One rung for all: matrices that share a register share the deepest of their rungs, which are not the same
        # function here, and which share a register depends on the number of threads.
        one = torch.ones_like(level)
        self.frechet(A.mH, E, rungs, one, derivative)
        adjoint = A.mH.resolve_conj().contiguous()
        worst = 0.0
        for got, compute, used in (
            (value, partial(eager.exponential, adjoint, None), level),
            (derivative, partial(eager.exponential, adjoint, E), one),
        ):
            for index, (weights, identity, squarings) in enumerate(
                ((networks[0], 0.5, 0), (networks[1], -0.5, 2))
            ):
                compute(weights, identity, squarings, expected, torch.nonzero(used == index)[:, 0])
            worst = max(worst, float((got - expected).abs().max() / expected.abs().max()))
        return worst
