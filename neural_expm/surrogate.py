"""Any learned network behind the public functions: the face that ``route.py`` expects, around a plain module.

A surrogate's value is the network's; what its derivative is, the caller chooses:

* ``grad="exact"``: the true Fréchet derivative of the function, computed by its default network;
* ``grad="network"``: the derivative of the network itself, only near that of the function (the model card
  says how near).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import domain
from .differentiation import matrix_function
from .domain import Reason
from .manifest import Checkpoint, list_models
from .networks.protocols import Network
from .route import Route


@dataclass
class Outcome:
    """Which rows a surrogate answers for, and the bound that it states for them."""

    reason: Tensor  # (batch,), uint8 codes of domain.Reason
    bound: float

    def describe(self) -> dict[str, Tensor]:
        """``bound``, ``products`` and ``squarings`` of each matrix; a network counts no products."""
        count = torch.zeros(self.reason.shape, dtype=torch.int64, device=self.reason.device)
        bound = torch.full(count.shape, self.bound, dtype=torch.float64, device=count.device)
        return {"bound": bound, "products": count, "squarings": count}


class Nobody(nn.Module):
    """A network that answers for no matrix, so that the route gives every one to the exact algorithm."""

    def outcome(self, A: Tensor, trust: bool = False) -> Outcome:
        """Every row outside."""
        return Outcome(torch.full(A.shape[:1], int(Reason.ROUTED), dtype=torch.uint8, device=A.device), 0.0)

    def run(self, A: Tensor, trust: bool = False) -> tuple[Tensor, Outcome]:
        """Rows left NaN, for the route to fill."""
        return torch.full_like(A, torch.nan), self.outcome(A)

    def run_frechet(self, A: Tensor, E: Tensor, outcome: Outcome) -> Tensor:
        """Rows left NaN, for the route to fill."""
        return torch.full_like(A, torch.nan)


class Surrogate(nn.Module):
    """A learned network on the domain of its manifest record.

    Args:
        record: the manifest record; its ``domain`` decides which rows the network answers for.
        network: (batch, n, n) → (batch, n, n), real; it runs in the dtype of its weights.
        default: loads, for a dtype, the network whose Fréchet derivative stands in for the exact one.
    """

    def __init__(
        self, record: Checkpoint, network: nn.Module, default: Callable[[torch.dtype], Network]
    ) -> None:
        super().__init__()
        self.record, self.network, self.default = record, network, default

    def bound(self, n: int) -> float:
        """The 99 % bound calibrated at this size where the record has one, else the bound of the record."""
        return (
            self.record.measured.get("conformal_by_size", {}).get(str(n), {}).get("0.99", self.record.bound)
        )

    def outcome(self, A: Tensor, trust: bool = False) -> Outcome:
        """Membership of each of (batch, n, n) matrices; ``trust`` calls every one inside."""
        inside = torch.zeros(A.shape[:1], dtype=torch.uint8, device=A.device)
        reason = inside if trust else domain.check(A, self.record.domain)[0]
        return Outcome(reason, self.bound(A.shape[-1]))

    def evaluate(self, A: Tensor) -> Tensor:
        """The network's value in A's dtype."""
        weight = next(self.network.parameters(), None)
        return self.network(A if weight is None else A.to(weight.dtype)).to(A.dtype)

    def run(self, A: Tensor, trust: bool = False) -> tuple[Tensor, Outcome]:
        """Values of the rows inside; the others are left NaN and named in ``outcome.reason``."""
        outcome = self.outcome(A, trust)
        rows = outcome.reason == Reason.INSIDE
        result = torch.full_like(A, torch.nan)
        if bool(rows.any()):
            with torch.no_grad():
                result[rows] = self.evaluate(A[rows])
        return result, outcome

    def run_frechet(self, A: Tensor, E: Tensor, outcome: Outcome) -> Tensor:
        """L(A, E) of the function itself, by the default network with the exact algorithm beside it."""
        return Route(self.record.function, self.default(A.dtype.to_real()), "exact").frechet(A, E)

    def program(self) -> Callable[[Tensor], Tensor]:
        """The network alone, for ``torch.compile`` with ``outside="trust"``."""
        return self.evaluate


#: Matrix products of the default networks at their cheapest, the price that a surrogate has to beat.
DEFAULT_PRODUCTS = {"expm": 3, "sign": 6, "sqrtm": 9}


def cheaper_surrogate(function: str, A: Tensor, rtol: float) -> Checkpoint | None:
    """The surrogate that promises ``rtol`` at A's size with fewer multiplications than the default, or None.

    A record states its price in ``measured["multiplications"]``, {n: real multiplications a matrix}. One that
    states none is never chosen.
    """
    n = A.shape[-1]
    best, price = None, DEFAULT_PRODUCTS[function] * n**3
    for record in list_models(function):
        cost = record.measured.get("multiplications", {}).get(str(n), price)
        low, high = record.domain.n
        fits = low <= n <= (high or n) and record.bound <= rtol and not A.is_complex()
        if record.bound_kind == "statistical" and fits and cost < price:
            best, price = record, cost
    return best


def through_network(A: Tensor, route: Route) -> Tensor:
    """f(A) with the surrogate's own derivative where it answers and the exact one elsewhere.

    Args:
        A: shape (*, n, n).
        route: its network is a :class:`Surrogate`.

    Raises:
        OutsideDomainError, UndefinedFunctionError: as the route does.
    """
    if not A.numel():
        return A.clone()
    flat = A.reshape(-1, *A.shape[-2:])
    network: Any = route.network
    route.outcome = network.outcome(flat, trust=route.outside == "trust")
    value = torch.full_like(flat.detach(), torch.nan)
    route.settle(flat.detach(), value, A.shape[:-2])
    inside = route.outcome.reason == Reason.INSIDE
    here, there = torch.nonzero(inside)[:, 0], torch.nonzero(~inside)[:, 0]
    if here.numel():
        value = value.index_put((here,), network.evaluate(flat[here]))
    if there.numel() and route.outside == "exact":
        exact = Route(route.function, Nobody(), "exact")
        value = value.index_put((there,), matrix_function(flat[there], exact))
    return value.reshape(A.shape)
