"""exp of a few matrices in one call of a native kernel, without a plan: nothing is grouped, nothing reported.

Evaluators of a batch: :meth:`value` answers for all of it or not at all, and remembers what :meth:`frechet` needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels import assembled, compiled

if TYPE_CHECKING:
    from .exponential import EquivariantExponential


class Compiled:
    """By the compiled kernel, which finds the rung of each matrix itself."""

    def __init__(self, kernel: compiled.Kernel, rungs: compiled.Rungs) -> None:
        self.kernel, self.rungs = kernel, rungs
        self.level: Tensor | None = None

    def value(self, A: Tensor, differentiable: bool) -> Tensor | None:
        """exp(A), shape (batch, n, n), contiguous; None where a matrix is outside.

        Args:
            A: shape (batch, n, n), contiguous.
            differentiable: whether :meth:`frechet` will be asked.
        """
        if differentiable:
            self.level = torch.empty(A.shape[0], dtype=torch.uint8)
        return self.kernel.value_at_once(A, self.rungs, self.level)

    def frechet(self, A: Tensor, E: Tensor) -> Tensor:
        """L(A, E) for the matrices that :meth:`value` saw, or their adjoints."""
        assert self.level is not None
        out = torch.empty_like(A, memory_format=torch.contiguous_format)
        self.kernel.frechet(A, E, self.rungs, self.level, out)
        return out


class Assembled:
    """By the assembled kernel, which takes as long for one matrix as for all lanes of a register: one rung for all."""

    def __init__(self, kernel: assembled.Kernel, network: EquivariantExponential, real: torch.dtype) -> None:
        self.kernel, self.network, self.real = kernel, network, real
        self.level = 0

    def value(self, A: Tensor, differentiable: bool) -> Tensor | None:
        """As :meth:`Compiled.value`."""
        ladder = self.network.ladder
        self.level = ladder.level(self.kernel.largest_norm(A))
        return None if self.level == len(ladder.rungs) else self._evaluate(A, None, self.level)

    def frechet(self, A: Tensor, E: Tensor) -> Tensor:
        """As :meth:`Compiled.frechet`."""
        return self._evaluate(A, E, max(self.level, self.network.ladder.derivative_level))

    def _evaluate(self, A: Tensor, E: Tensor | None, level: int) -> Tensor:
        rung = self.network.ladder.rungs[level]
        tier = self.network.tiers[rung.tier]
        weights = tier.packed(self.real, A.device)
        out = torch.empty_like(A, memory_format=torch.contiguous_format)
        self.kernel.exponential(A, E, weights, tier.identity, rung.squarings, out)
        return out
