"""What the route asks of a network, for the type checker and for ``isinstance``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


class Outcome(Protocol):
    """Which matrices of a batch a network answers for, and what a report says of them."""

    @property
    def reason(self) -> Tensor | None:
        """A ``domain.Reason`` code for each matrix, shape (batch,); None where all are inside."""

    def describe(self) -> dict[str, Tensor]:
        """``bound``, ``products`` and ``squarings`` of each matrix, shape (batch,)."""


class Network(Protocol):
    """A matrix function on batches of shape (batch, n, n), with its Fréchet derivative."""

    def outcome(self, A: Tensor, trust: bool = False) -> Outcome:
        """What :meth:`run` would report; ``trust`` calls every matrix inside."""

    def run(self, A: Tensor, trust: bool = False) -> tuple[Tensor, Outcome]:
        """The values, those of rows outside unset, and the outcome."""

    def run_frechet(self, A: Tensor, E: Tensor, outcome: Any, /) -> Tensor:
        """L(A, E) for an outcome of the same network, rows outside unset; None trusts every matrix."""


@runtime_checkable
class Traceable(Network, Protocol):
    """A network that a tracer can follow."""

    def program(self) -> Callable[[Tensor], Tensor]:
        """The function of (*, n, n) matrices without data-dependent control flow."""
