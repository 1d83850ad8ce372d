"""The assembled sign and square root: stages as their code reads them, passes, and what becomes of each matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..calling import CPU
from ..composition import Stage
from ..composition_kernel import CompositionKernel, Course, Kind, Passes, Record, RootCheck, SignCheck
from .composition_code import NOTES, STAGE, Program
from .kernel import AssembledKernel, by_rows
from .lanes import Job


class _Kernel(CompositionKernel, AssembledKernel):
    """A composition and its Fréchet derivative for one n and dtype."""

    coupled: ClassVar[bool]

    def value(
        self, A: Tensor, passes: Passes, accepted: float, largest: float, trust: bool, out: Tensor | None
    ) -> Record:
        """As :meth:`CompositionKernel.value`."""
        count, real = A.shape[0], self.dtype.to_real()
        result = torch.empty_like(A, memory_format=torch.contiguous_format) if out is None else out
        companions = torch.empty_like(result) if self.coupled else result
        bound, hermitian = self._bounds(A)
        radius = torch.full_like(bound, passes.general[2]).masked_fill_(hermitian, passes.hermitian[2])
        record = Record(
            scale=radius / bound.clamp_min(torch.finfo(real).tiny),
            residual=torch.full((count,), math.inf, dtype=real, device=CPU),
            passes=torch.zeros(count, dtype=torch.int64, device=CPU),
            hermitian=hermitian,
            failed=torch.full((count,), not trust, device=CPU),
            any_failed=False,
        )
        possible = torch.isfinite(bound) | trust
        for structure, kind in enumerate(passes.kinds):
            rows, source = torch.nonzero(possible & (hermitian == bool(structure)))[:, 0], A
            for taken in range(1, passes.most + 1):
                if not rows.numel():
                    break
                scale = record.scale if source is A else None
                distance, size, ratio = self._pass(
                    source, rows, scale, passes, kind, not trust, result, companions
                )
                sound, eta = ratio <= 1.0, distance.sqrt()
                good = sound & (eta <= (accepted * size.clamp_min(1.0)).clamp_max(largest))
                record.residual[rows] = torch.where(sound, eta, math.inf)
                record.passes[rows] = torch.where(sound, taken, taken - 1)
                if not trust:
                    record.failed[rows] = ~good
                rows, source = rows[sound & ~good & torch.isfinite(eta)], result
        if self.coupled:
            result.mul_(record.scale.rsqrt()[:, None, None])
        record.any_failed = bool(record.failed.any())
        return record

    def frechet(self, A: Tensor, E: Tensor, passes: Passes, course: Course, out: Tensor) -> None:
        """As :meth:`CompositionKernel.frechet`."""
        E = by_rows(E.resolve_conj())
        for kind, like in zip(passes.kinds, (~course.hermitian, course.hermitian), strict=True):
            for number in range(1, passes.most + 1):
                rows = torch.nonzero(like & (course.passes == number))[:, 0]
                if rows.numel():
                    job = self._job(rows, passes, kind, number, False, out)
                    job.directions, job.directions_step = E.data_ptr(), E.stride(0) * E.element_size()
                    job.scales = course.scale.data_ptr()
                    self._run("frechet", job, A, rows.shape[0], kind, number)
        if self.coupled:
            # (A/c²)^{1/2} = A^{1/2}/c, and the derivative scales alike: its direction was divided by c² too.
            out.mul_(course.scale.rsqrt()[:, None, None])

    # --- calls --------------------------------------------------------------------------------------------------------

    def _bounds(self, A: Tensor) -> tuple[Tensor, Tensor]:
        """The lesser of ‖A‖_F and ‖A²‖_F^{1/2}, neither of which the spectral radius exceeds; where A is Hermitian."""
        count = A.shape[0]
        notes = self._notes(count)
        job = Job(last=count - 1, notes=notes.data_ptr(), notes_step=notes.stride(0) * notes.element_size())
        self._run("bounds", job, A, count, None, 1)
        bound, departure, _ = notes[:, :count]
        return bound, departure == 0

    def _pass(
        self,
        source: Tensor,
        rows: Tensor,
        scale: Tensor | None,
        passes: Passes,
        kind: Kind,
        check: bool,
        result: Tensor,
        companions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass of some rows; for each its ‖X² − I‖², its ‖X‖², and the ratio of its certificate."""
        count = rows.shape[0]
        notes = self._notes(count)
        job = self._job(rows, passes, kind, 1, check and kind[1] is not None, result)
        job.notes, job.notes_step = notes.data_ptr(), notes.stride(0) * notes.element_size()
        job.companions, job.companions_step = companions.data_ptr(), job.out_step
        job.scales = 0 if scale is None else scale.data_ptr()
        self._run("value", job, source, count, kind, 1)
        distance, size, ratio = notes[:, :count]
        return distance, size, ratio

    def _notes(self, count: int) -> Tensor:
        """Room for what a program notes; the last group of a batch fills as many places as there are lanes."""
        places = -(-count // self.lanes) * self.lanes
        return torch.empty(NOTES, places, dtype=self.dtype.to_real(), device=CPU)

    def _job(self, rows: Tensor, passes: Passes, kind: Kind, number: int, check: bool, out: Tensor) -> Job:
        table = self._table(passes, kind, number)
        return Job(
            out=out.data_ptr(),
            out_step=self.n**2 * out.element_size(),
            rows=rows.data_ptr(),
            last=rows.shape[0] - 1,
            weights=table.data_ptr(),
            stages=len(kind[0]) * number,
            certified=check,
        )

    def _run(self, code: str, job: Job, A: Tensor, count: int, kind: Kind | None, number: int) -> None:
        transposed = A.stride()[1:] == (1, self.n)
        A = A if transposed else by_rows(A)
        members = 2 if code == "frechet" else 1
        make = partial(Program, coupled=self.coupled)
        program, function = self._program(make, code, members, transposed, A.is_conj())
        products = 1 if kind is None else (3 + self.coupled) * len(kind[0]) * number + 1
        work = products * (2 * members - 1) * self.n**3 * program.shape.parts**2
        self._call(function, job, A, count, work, program.workspace())

    def _table(self, passes: Passes, kind: Kind, number: int) -> Tensor:
        """The stages of so many passes as the code reads them, each number in all lanes of a register."""
        key = "assembled", self.lanes, self.dtype.to_real(), kind is passes.hermitian, number
        if key not in passes.kept:
            stages, radii, _ = kind
            limits = [math.inf] * len(stages) if radii is None else [radius * radius for radius in radii]
            rows = [_numbers(stage, limit) for stage, limit in zip(stages, limits, strict=True)] * number
            table = torch.tensor(rows, dtype=torch.float64, device=CPU).to(self.dtype.to_real())
            # The first one made stays, whatever other threads make: a job only points to it.
            passes.kept.setdefault(key, table.reshape(-1, 1).repeat(1, self.lanes))
        return passes.kept[key]


def _numbers(stage: Stage, limit: float) -> Sequence[float]:
    """A stage, and the factors of ‖W‖², ‖W − I‖², ‖W²‖², ‖W⁴‖² and ‖W⁸‖² in its certificate."""
    apart = (limit - 1.0) ** -2 if limit > 1.0 else math.inf
    numbers = (*stage, limit**-2, apart, limit**-4, limit**-8, limit**-16)
    assert len(numbers) == STAGE
    return numbers


class SignKernel(_Kernel, SignCheck):
    """sign."""

    coupled: ClassVar = False


class RootKernel(_Kernel, RootCheck):
    """The square root."""

    coupled: ClassVar = True
