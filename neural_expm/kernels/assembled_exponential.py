"""The assembled exponential: weights as its code reads them, and the calls."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from ..domain import frobenius_norm
from . import eager
from .assembled_exponential_code import Program
from .assembled_kernel import AssembledKernel, by_rows
from .assembled_lanes import Job

NORMS_FROM = 1 << 16  # entries of a batch from which on a program of our own finds norms faster than torch
TABLES = 64  # tables of weights that a kernel keeps
_NO_WEIGHTS: list[Tensor] = []


class Kernel(AssembledKernel):
    """exp and its Fréchet derivative for one n and dtype; has the face of ``eager``."""

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        self._tables: OrderedDict[tuple[int, int], tuple[list[Tensor], Tensor]] = OrderedDict()
        super().__init__(n, dtype)

    def exponential(
        self,
        A: Tensor,
        E: Tensor | None,
        weights: list[Tensor],
        identity: float,
        squarings: int,
        out: Tensor,
        rows: Tensor | None = None,
    ) -> None:
        """As ``eager.exponential``."""
        n, count = self.n, A.shape[0] if rows is None else rows.shape[0]
        if not count:
            return
        transposed = A.stride()[1:] == (1, n)
        A = A if transposed else by_rows(A)
        members, products = (1 if E is None else 2), len(weights)
        program, function = self._program(Program, "code", members, transposed, A.is_conj())
        work = (products + squarings) * (2 * members - 1) * n**3 * program.shape.parts**2
        # Held until the call is over: another thread may put its own in the place of what a job only points to.
        table = self._table(weights, identity, squarings)
        job = Job(
            out=out.data_ptr(),
            out_step=n * n * A.element_size(),
            rows=0 if rows is None else rows.data_ptr(),
            last=count - 1,
            workspace_step=program.workspace(products),
            weights=table.data_ptr(),
            products=products,
            squarings=squarings,
        )
        if E is not None:
            E = by_rows(E.resolve_conj())
            job.directions, job.directions_step = E.data_ptr(), E.stride(0) * A.element_size()
        self._call(function, job, A, count, work)

    def largest_norm(self, A: Tensor) -> float:
        """Of contiguous A, shape (batch, n, n), the largest ‖A‖_F; infinite where squares of entries are, or NaN."""
        if A.shape[0] == 1:
            return float(torch.linalg.vector_norm(A))
        return float(torch.linalg.vector_norm(A.flatten(-2), dim=-1).amax())

    def norms(self, A: Tensor) -> Tensor:
        """‖A‖_F, shape (batch), real; infinite where squares of entries are, NaN where A has NaN."""
        count = A.shape[0]
        if A.numel() < NORMS_FROM:
            return frobenius_norm(A)
        A = A if A.stride()[1:] == (1, self.n) else by_rows(A)  # a transpose has the same norm
        program, function = self._program(Program, "norms")
        norms = torch.empty(-(-count // self.lanes) * self.lanes, dtype=self.dtype.to_real())
        one = self._table(_NO_WEIGHTS, 0.0, 0)
        job = Job(
            out=norms.data_ptr(), last=count - 1, workspace_step=program.workspace(0), weights=one.data_ptr()
        )
        self._call(function, job, A, count, 4 * self.n**2)
        return norms[:count]

    def _table(self, weights: list[Tensor], identity: float, squarings: int) -> Tensor:
        """The weights as the program reads them, each in all lanes of a register."""
        known = self._tables.get((id(weights), squarings))
        if known is None:
            scale = 2.0**-squarings
            head = torch.tensor([scale, -scale, identity], dtype=self.dtype.to_real())
            table = torch.cat([head, *(w.reshape(-1) for w in weights)])[:, None].repeat(1, self.lanes)
            # The list is kept alive, so that its id names no other one.
            self._tables[id(weights), squarings] = known = weights, table
            if len(self._tables) > TABLES:
                self._tables.popitem(last=False)
        return known[1]

    def discrepancy(self) -> float:
        """Largest relative difference from the eager kernel, over a small batch with a fixed seed."""
        n, real = self.n, self.dtype.to_real()
        generator = torch.Generator().manual_seed(n)
        A, E = torch.randn(2, 19, n, n, dtype=self.dtype, generator=generator) / n
        weights = [torch.rand(k, h, dtype=real, generator=generator) for k, h in ((2, 2), (2, 3), (1, 4))]
        rows = torch.arange(A.shape[0]).flip(0)
        worst = 0.0
        for X, direction in ((A, None), (A.mH, E)):
            got, expected = torch.zeros_like(A), torch.zeros_like(A)
            self.exponential(X, direction, weights, -0.5, 2, got, rows)
            eager.exponential(X, direction, weights, -0.5, 2, expected)
            worst = max(worst, float((got - expected).abs().max() / expected.abs().max()))
        many = A.repeat(-(-NORMS_FROM // A.numel()), 1, 1)
        norms = frobenius_norm(many)
        return max(worst, float(((self.norms(many) - norms) / norms).abs().max()))
