"""The assembled sign and square root: stages as their code reads them, passes, and what becomes of each matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor

from ..calling import CPU
from ..composition import Stage
from ..composition_kernel import CompositionKernel, Course, Kind, Passes, Record, RootCheck, SignCheck
from .composition_code import NOTES, STAGE, Program
from .job import Job
from .kernel import AssembledKernel, by_rows


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
        scale = radius / bound.clamp_min(torch.finfo(real).tiny)
        residual, verdict = notes = torch.full((NOTES, count), math.inf, dtype=real, device=CPU)
        number = torch.zeros(count, dtype=torch.int64, device=CPU)
        pending, source, factors = torch.isfinite(bound) | trust, A, scale.data_ptr()
        for _ in range(passes.most):
            for kind, like in zip(passes.kinds, (~hermitian, hermitian), strict=True):
                rows = torch.nonzero(pending & like)[:, 0]
                if not rows.numel():
                    continue
                check = not trust and kind[1] is not None
                job = self._job(rows, passes, kind, 1, check, (accepted, largest), result)
                job.notes, job.notes_step = notes.data_ptr(), notes.stride(0) * notes.element_size()
                job.companions, job.companions_step = companions.data_ptr(), job.out_step
                job.scales = factors
                self._run("value", job, source, rows.shape[0], kind, 1)
            sound = torch.isfinite(residual)
            residual.masked_fill_(~sound, math.inf)  # NaN, too
            number += pending & sound
            pending &= sound & ~(verdict <= 1.0)
            if not bool(pending.any()):
                break
            source, factors = result, 0  # where the pass before has left them
        if self.coupled:
            result.mul_(scale.rsqrt()[:, None, None])
        failed = torch.zeros_like(hermitian) if trust else ~(verdict <= 1.0)
        return Record(scale, residual, number, hermitian, failed, bool(failed.any()))

    def frechet(self, A: Tensor, E: Tensor, passes: Passes, course: Course, out: Tensor) -> None:
        """As :meth:`CompositionKernel.frechet`."""
        E = by_rows(E.resolve_conj())
        for kind, like in zip(passes.kinds, (~course.hermitian, course.hermitian), strict=True):
            for number in range(1, passes.most + 1):
                rows = torch.nonzero(like & (course.passes == number))[:, 0]
                if rows.numel():
                    job = self._job(rows, passes, kind, number, False, (1.0, 1.0), out)
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
        notes = self._notes(NOTES, count)
        job = Job(last=count - 1, notes=notes.data_ptr(), notes_step=notes.stride(0) * notes.element_size())
        self._run("bounds", job, A, count, None, 1)
        bound, departure = notes[:, :count]
        return bound, departure == 0

    def _job(
        self,
        rows: Tensor,
        passes: Passes,
        kind: Kind,
        number: int,
        check: bool,
        limits: tuple[float, float],
        out: Tensor,
    ) -> Job:
        table = self._table(passes, kind, number, limits)
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

    def _table(self, passes: Passes, kind: Kind, number: int, limits: tuple[float, float]) -> Tensor:
        """The stages of so many passes as the code reads them, each number in all lanes of a register."""
        key = "assembled", self.lanes, self.dtype.to_real(), kind is passes.hermitian, number, limits
        if key not in passes.kept:
            stages, radii, _ = kind
            squares = [math.inf] * len(stages) if radii is None else [radius * radius for radius in radii]
            rows = [_numbers(stage, r) for stage, r in zip(stages, squares, strict=True)] * number
            numbers = [*chain.from_iterable(rows), *(1 / limit for limit in limits)]
            table = torch.tensor(numbers, dtype=torch.float64, device=CPU).to(self.dtype.to_real())
            # The first one made stays, whatever other threads make: a job only points to it.
            passes.kept.setdefault(key, table[:, None].repeat(1, self.lanes))
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
