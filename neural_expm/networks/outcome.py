"""What a composition did with each matrix, and what a report says of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Outcome:
    """Of each matrix: how it was scaled, how many passes it took, its residual η, and why it failed if it did."""

    scale: Tensor
    passes: Tensor
    hermitian: Tensor
    residual: Tensor
    products_per_pass: tuple[int, int]  # of a general matrix, and of a Hermitian one
    kernel: str = "eager"
    reason: Tensor | None = None
    details: dict[str, Tensor] = field(default_factory=dict)

    def describe(self) -> dict[str, Tensor]:
        """``bound``, ``products`` and ``squarings`` of each matrix."""
        if not self.details:
            eta = self.residual.double().clamp(max=1.0)
            # 1 − √(1 − η) without cancellation
            bound = eta / (1 + torch.sqrt(1 - eta))
            general, hermitian = self.products_per_pass
            self.details = {
                "bound": bound,
                "products": self.passes * torch.where(self.hermitian, hermitian, general),
                "squarings": torch.zeros_like(self.passes),
            }
        return self.details

    def computed(self) -> Tensor:
        """The passes of the matrices that the network answers for, 0 for the others."""
        return self.passes if self.reason is None else torch.where(self.reason == 0, self.passes, 0)
