"""The route of one call: which rows the network answers for, and what becomes of the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .domain import Reason
from .errors import OutsideDomainError, UndefinedFunctionError
from .kernels.precision import full_precision
from .kernels.results import reshaped
from .networks.protocols import Network
from .report import Report, batch_index

WHY_UNDEFINED = {
    "sign": "an eigenvalue on the imaginary axis, to working precision, so sign(A) does not exist",
    "sqrtm": "an eigenvalue on the closed negative real axis, to working precision, so no principal square root exists",
    "expm": "no exponential",
}


class Route:
    """Evaluator (see ``differentiation.py``) of a network with the exact algorithm beside it.

    Args:
        function: ``"expm"``, ``"sign"`` or ``"sqrtm"``.
        network: answers for the rows inside its domain.
        outside: what becomes of rows that the network does not answer for.
    """

    def __init__(self, function: str, network: Network, outside: str) -> None:
        self.function, self.network, self.outside = function, network, outside
        self.outcome: Any = None
        # Whether refused matrices may be near enough to be answered by a few Newton steps.
        self.newton = function == "sign" and getattr(network, "certified_at_run_time", False)

    def renewed(self) -> Route:
        """The same route for another matrix."""
        return Route(self.function, self.network, self.outside)

    def value(self, A: Tensor) -> Tensor:
        """f(A), shape (*, n, n)."""
        if not A.numel():
            return A.clone()
        # Here and below: an operation that does nothing still takes a microsecond, and a small matrix only a few.
        flat = A if A.ndim == 3 else A.reshape(-1, *A.shape[-2:])
        with full_precision(A):
            result, self.outcome = self.network.run(flat, trust=self.outside == "trust")
            if self.outcome.reason is not None and self.outside != "trust":
                self.settle(flat, result, A.shape[:-2])
        return reshaped(result, A.shape)

    def frechet(self, A: Tensor, E: Tensor) -> Tensor:
        """L(A, E), shape (*, n, n).

        Reached either for the matrices that :meth:`value` saw or for their adjoints, whose norms and certificates are
        the same, so that the outcome serves twice; or on a renewed route, where there is none yet.
        """
        if not A.numel():
            return E.clone()
        flat, direction = (A, E) if A.ndim == 3 else (X.reshape(-1, *X.shape[-2:]) for X in (A, E))
        trust = self.outside == "trust"
        with full_precision(A):
            if self.outcome is None:
                self.outcome = self.network.outcome(flat, trust)
            result = self.network.run_frechet(flat, direction, self.outcome)
            if self.outcome.reason is not None and not trust:
                rows = torch.nonzero(self.outcome.reason)[:, 0]
                if self.outside == "exact" and rows.numel():
                    from . import exact, refused

                    if self.newton:
                        refused.sign_frechet(flat, direction, rows, result)
                    else:
                        result[rows] = exact.FRECHET[self.function](flat[rows], direction[rows])
                else:
                    result[rows] = torch.nan
        return reshaped(result, E.shape)

    def settle(self, A: Tensor, result: Tensor, batch: torch.Size) -> None:
        """Fill in the rows outside, or raise for them."""
        rows = torch.nonzero(self.outcome.reason)[:, 0]
        if not rows.numel():
            return
        if self.outside == "raise":
            first = int(rows[0])
            raise OutsideDomainError(
                f"{self.function}: {rows.numel()} of {A.shape[0]} matrices are outside the network's domain, first at "
                f"batch index {batch_index(first, batch)}: {Reason(int(self.outcome.reason[first]))}; "
                "use outside='exact' for the exact algorithm or outside='nan' to mark them"
            )
        if self.outside == "nan":
            result[rows] = torch.nan
            return
        from . import exact, refused  # here and above: most programs never meet a matrix outside

        if self.newton:
            undefined = refused.sign(A, rows, result)
        else:
            result[rows], undefined = exact.VALUE[self.function](A[rows])
        if bool(undefined.any()):
            first = int(rows[undefined][0])
            raise UndefinedFunctionError(
                f"{self.function}: the matrix at batch index {batch_index(first, batch)} has "
                f"{WHY_UNDEFINED[self.function]} ({int(undefined.sum())} such matrices in the batch); "
                "perturb or remove it, or use outside='nan' to mark it"
            )

    def report(self, checkpoint: str, bound_kind: str, batch: torch.Size) -> Report:
        """Of the last value, with tensors of the batch shape."""
        return make_report(self.function, self.outcome, checkpoint, bound_kind, batch, self.outside)


def make_report(
    function: str, outcome: Any, checkpoint: str, bound_kind: str, batch: torch.Size, outside: str
) -> Report:
    """A report from an outcome; an outcome of None is an empty batch."""
    if outcome is None:
        empty = torch.zeros(batch, dtype=torch.int64, device="cpu")
        return Report(
            function,
            checkpoint,
            bound_kind,
            empty.bool(),
            empty.to(torch.uint8),
            empty.double(),
            empty,
            empty,
            outside,
        )
    details = outcome.describe()
    code = outcome.reason
    code = torch.zeros_like(details["products"], dtype=torch.uint8) if code is None else code
    inside = code == Reason.INSIDE
    nothing = torch.nan if outside == "nan" else 0.0
    if outside == "trust":  # whatever the domain says
        bound_kind, code = "unchecked", torch.full_like(code, int(Reason.UNCHECKED))
    promised = details["bound"] if bound_kind in ("certified", "statistical") else torch.nan
    values = {
        "bound": torch.where(inside, promised, nothing),
        "products": torch.where(inside, details["products"], 0),
        "squarings": torch.where(inside, details["squarings"], 0),
    }
    return Report(
        function,
        checkpoint,
        bound_kind,
        inside.reshape(batch),
        code.reshape(batch),
        **{key: value.reshape(batch) for key, value in values.items()},
        outside=outside,
        kernel=getattr(outcome, "kernel", "eager"),
    )
