"""The assembled exponential: rungs as its code reads them, and the calls."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from ...domain import norm_bound
from ..calling import CPU
from ..exponential_kernel import FRECHET_PRODUCTS, VALUE_PRODUCTS, ExponentialKernel, Rungs
from .exponential_code import Program
from .job import Job
from .kernel import AssembledKernel, by_rows
from .tiles import MOST_RUNGS, NETWORK


class _Tables(NamedTuple):
    """What the code reads, each number in all lanes of a register; the addresses, and what they point to."""

    radii: int
    networks: int
    kept: tuple[Tensor, list[Tensor], ctypes.Array[ctypes.c_int64]]


class Kernel(ExponentialKernel, AssembledKernel):
    """exp and its Fréchet derivative for one n and dtype."""

    def value(self, A: Tensor, rungs: Rungs, trust: bool, out: Tensor | None) -> tuple[Tensor, bool]:
        """As :meth:`ExponentialKernel.value`."""
        level = torch.empty(A.shape[0], dtype=torch.uint8, device=CPU)
        outside = self._run(A, None, rungs, trust, level, out)
        return level, outside and self._outside(A, rungs, level, out)

    def _outside(self, A: Tensor, rungs: Rungs, level: Tensor, out: Tensor | None) -> bool:
        """Give the last rung to those whose sharper norm bound it reaches; whether any are left."""
        rows = torch.nonzero(level == len(rungs))[:, 0]
        inside = norm_bound(A[rows]) <= rungs.radii[-1]
        reached = rows[inside]
        if reached.numel():
            found = A.new_empty(reached.shape[0], self.n, self.n)
            self._run(A[reached], None, rungs, True, None, found)
            level[reached] = len(rungs) - 1
            if out is not None:
                out[reached] = found
        return not bool(inside.all())

    def value_at_once(self, A: Tensor, rungs: Rungs, level: Tensor | None = None) -> Tensor | None:
        """As :meth:`ExponentialKernel.value_at_once`."""
        out = torch.empty_like(A)
        return None if self._run(A, None, rungs, False, level, out) else out

    def frechet(self, A: Tensor, E: Tensor, rungs: Rungs, level: Tensor, out: Tensor) -> None:
        """As :meth:`ExponentialKernel.frechet`."""
        self._run(A, by_rows(E.resolve_conj()), rungs, False, level, out)

    def _run(
        self, A: Tensor, E: Tensor | None, rungs: Rungs, trust: bool, level: Tensor | None, out: Tensor | None
    ) -> bool:
        """Call the code; whether it found a matrix that no rung serves."""
        n, count = self.n, A.shape[0]
        transposed = A.stride()[1:] == (1, n)
        A = A if transposed else by_rows(A)
        members, products = (1, VALUE_PRODUCTS) if E is None else (2, FRECHET_PRODUCTS)
        program, function = self._program(Program, "code", members, transposed, A.is_conj())
        tables, number = self._tables(rungs), len(rungs)
        job = Job(
            radii=tables.radii,
            networks=tables.networks,
            rungs=number,
            reached=number - trust,
            least=rungs.derivative_level,
            levels=0 if level is None else level.data_ptr(),
            out=0 if out is None else out.data_ptr(),
            out_step=program.matrix_bytes,
        )
        if E is not None:
            job.directions, job.directions_step = E.data_ptr(), E.stride(0) * E.element_size()
        work = products * n**3 * program.shape.parts**2
        self._call(function, job, A, count, work, program.workspace(rungs.deepest))
        return job.outside != 0

    def _tables(self, rungs: Rungs) -> _Tables:
        key = "assembled", self.lanes
        tables = rungs.kept.get(key)
        if tables is None:
            assert len(rungs) <= MOST_RUNGS
            one = rungs.radii.new_tensor([1.0, -1.0])
            radii = self._in_all_lanes(torch.cat([one, rungs.radii]))
            weights, numbers = [], []
            for products, (flat, identity, squarings) in zip(rungs.products, rungs.networks, strict=True):
                scale = 2.0**-squarings
                weights.append(
                    self._in_all_lanes(torch.cat([flat.new_tensor([scale, -scale, identity]), flat]))
                )
                numbers += [weights[-1].data_ptr(), products, squarings]
            assert len(numbers) == NETWORK * len(rungs)
            networks = (ctypes.c_int64 * len(numbers))(*numbers)
            tables = _Tables(radii.data_ptr(), ctypes.addressof(networks), (radii, weights, networks))
            tables = rungs.kept.setdefault(key, tables)  # the first one stays, whatever other threads make
        return tables

    def _in_all_lanes(self, numbers: Tensor) -> Tensor:
        return numbers[:, None].repeat(1, self.lanes)
