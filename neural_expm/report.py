"""Which network answered for each matrix, and how wrong it can be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .domain import Reason

SHOWN = 12  # matrices listed one by one by ``str(report)``


@dataclass(frozen=True)
class Report:
    """What happened to each matrix of a batch; every tensor has the batch shape of A.

    Attributes:
        function: name of the matrix function.
        checkpoint: name of the network.
        bound_kind: ``"certified"`` or ``"statistical"``; ``"unproven"`` for a module whose weights are not those of a
            checkpoint, ``"unchecked"`` under ``outside="trust"``; speaks of the rows with ``inside``.
        inside: bool, the network answered.
        code: uint8 :class:`neural_expm.domain.Reason` codes; :attr:`reason` has the words.
        bound: float64, relative error promised for the row, before rounding (certified: in the spectral norm for exp;
            in any norm for sign and sqrtm). 0 on the exact path, NaN where nothing is promised.
        products, squarings: matrix products of the network and squarings after it; 0 on the exact path.
        kernel: what computed the network: ``"eager"`` (torch operations), ``"assembled"``, ``"compiled"`` or
            ``"triton"`` (see ``kernels.available``); or ``"eigenbasis"``, where the matrices are multiples of one and
            the scalar exponential of its eigenvalues took the place of the products that are listed.
    """

    function: str
    checkpoint: str
    bound_kind: str
    inside: Tensor
    code: Tensor
    bound: Tensor
    products: Tensor
    squarings: Tensor
    outside: str = "exact"
    kernel: str = "eager"

    @property
    def path(self) -> list[str] | str:
        """``"network"``, or what became of the row outside: ``"exact"``, ``"nan"``; nested as the batch is."""
        return _nested(self.inside, lambda inside: "network" if inside else self.outside)

    @property
    def reason(self) -> list[str] | str:
        """Why, in words, nested as the batch is."""
        return _nested(self.code, lambda code: str(Reason(int(code))))

    def __repr__(self) -> str:
        """As in print: what a notebook shows."""
        return str(self)

    def __str__(self) -> str:
        """A short table: totals, then the first rows."""
        from .kernels import assembled, compiled  # with the first call, like all kernels

        wanting = {"eager": (assembled, compiled), "assembled": (compiled,)}.get(self.kernel, ())
        hindrance = "; ".join(filter(None, (kernel.failure() for kernel in wanting)))
        count = self.inside.numel()
        inside, noun = int(self.inside.sum()), "matrix" if count == 1 else "matrices"
        lines = [
            f"{self.function}: {count} {noun}, {inside} by {self.checkpoint} ({self.bound_kind} bound), "
            f"{count - inside} {'left NaN' if self.outside == 'nan' else 'by the exact algorithm'}; "
            f"{self.kernel} kernel{hindrance and f' ({hindrance})'}",
            f"{'matrix':>10}  {'path':<8} {'products':>8} {'squarings':>9} {'bound':>9}  reason",
        ]
        shape = self.inside.shape
        for flat in range(min(count, SHOWN)):
            index = batch_index(flat, shape)
            ok = bool(self.inside[index])
            promise = f"{float(self.bound[index]):.1e}" if ok else "–"
            lines.append(
                f"{index!s:>10}  {'network' if ok else self.outside:<8} {int(self.products[index]):>8} "
                f"{int(self.squarings[index]):>9} {promise:>9}  {Reason(int(self.code[index]))}"
            )
        if count > SHOWN:
            lines.append(f"{'…':>10}  {count - SHOWN} more")
        return "\n".join(lines)


def batch_index(flat: int, batch: torch.Size) -> tuple[int, ...]:
    """The index in a batch of this shape of the matrix that is number ``flat``."""
    return tuple(int(i) for i in np.unravel_index(flat, batch))


def _nested(values: Tensor, text) -> list | str:
    def walk(value):
        return [walk(v) for v in value] if isinstance(value, list) else text(value)

    return walk(values.tolist())
