"""The assembled exponential: rungs as its code reads them, and the calls."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from ...domain import norm_bound
from ..calling import CPU
from ..exponential_kernel import FRECHET_PRODUCTS, VALUE_PRODUCTS, Bound, ExponentialKernel, Rungs
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

    def bound(self, count: int, rungs: Rungs) -> Bound:
        """As :meth:`ExponentialKernel.bound`."""
        program, function = self._program(Program, "code")
        like = self._job(program, rungs, False)
        like.matrices_step = like.directions_step = program.matrix_bytes
        work, workspace = self._work(program, VALUE_PRODUCTS), program.workspace(rungs.deepest)

        def value(A: Tensor, levels: int) -> Tensor | None:
            job, out = Job.from_buffer_copy(like), torch.empty_like(A)
            job.matrices, job.levels, job.out = A.data_ptr(), levels, out.data_ptr()
            self._share(function, job, count, work, workspace)
            return None if job.outside else out

        def frechet(A: Tensor, E: Tensor, levels: int) -> Tensor:
            job, out = Job.from_buffer_copy(like), torch.empty_like(E)
            program, function = self._program(Program, "code", 2, not A.is_contiguous(), A.is_conj())
            job.matrices, job.directions = A.data_ptr(), E.data_ptr()
            job.levels, job.out = levels, out.data_ptr()
            work, workspace = self._work(program, FRECHET_PRODUCTS), program.workspace(rungs.deepest)
            self._share(function, job, count, work, workspace)
            return out

        return Bound(value, frechet, rungs)

    def frechet(self, A: Tensor, E: Tensor, rungs: Rungs, level: Tensor, out: Tensor) -> None:
        """As :meth:`ExponentialKernel.frechet`."""
        self._run(A, by_rows(E.resolve_conj()), rungs, False, level, out)

    def _run(
        self, A: Tensor, E: Tensor | None, rungs: Rungs, trust: bool, level: Tensor | None, out: Tensor | None
    ) -> bool:
        """Call the code; whether it found a matrix that no rung serves."""
        transposed = A.stride()[1:] == (1, self.n)
        A = A if transposed else by_rows(A)
        members, products = (1, VALUE_PRODUCTS) if E is None else (2, FRECHET_PRODUCTS)
        program, function = self._program(Program, "code", members, transposed, A.is_conj())
        job = self._job(program, rungs, trust)
        job.levels = 0 if level is None else level.data_ptr()
        job.out = 0 if out is None else out.data_ptr()
        if E is not None:
            job.directions, job.directions_step = E.data_ptr(), E.stride(0) * E.element_size()
        work = self._work(program, products)
        self._call(function, job, A, A.shape[0], work, program.workspace(rungs.deepest))
        return job.outside != 0

    def _job(self, program: Program, rungs: Rungs, trust: bool) -> Job:
        tables, number = self._tables(rungs), len(rungs)
        return Job(
            radii=tables.radii,
            networks=tables.networks,
            rungs=number,
            reached=number - trust,
            least=rungs.derivative_level,
            out_step=program.matrix_bytes,
        )

    def _work(self, program: Program, products: int) -> int:
        return products * self.n**3 * program.shape.parts**2

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
