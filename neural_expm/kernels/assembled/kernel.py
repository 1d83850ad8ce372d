"""What the assembled kernels have in common: one n and dtype, code for each way that matrices come, and its calls."""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..calling import CHECK, CPU, FUNCTION, Function, aside, parallel, share, threads_for
from .job import Job, Shape
from .lanes import Lanes
from .memory import Unavailable, Workspace, executable, wide
from .vectors import Assembler

_workspace = Workspace()
LONE = 4  # matrices, fewer of which leave most lanes empty
PARTS = 4  # of a batch for each thread: one that is interrupted leaves more to the others


class AssembledKernel:
    """Machine code for one n and dtype; tensors are on the CPU.

    Raises:
        Unavailable: see ``memory.py``; or the code computes wrongly.
    """

    name = "assembled"
    # Lanes are faster than torch's operations up to ``largest_n``, even with one matrix for all of them; beyond
    # ``lone_complex_n`` complex ones must be LONE or more.  Up to ``at_once_n`` the code is written at the first call.
    at_once_n, largest_n, lone_complex_n = 12, 32, 24

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        self.n, self.dtype, self.wide = n, dtype, wide()
        self.lanes = Assembler(self.wide, dtype.to_real() is torch.float64).lanes
        self._programs: dict[tuple[Any, ...], tuple[Any, Function]] = {}
        error = aside(self.discrepancy)
        if not error <= CHECK[dtype.to_real()]:
            raise Unavailable(f"the assembled code is wrong (relative error {error:.1e})")

    @classmethod
    def worthwhile(cls, n: int, count: int, is_complex: bool) -> bool:
        """Whether so many matrices are faster so than by torch's operations."""
        largest = min(cls.lone_complex_n, cls.largest_n) if is_complex and count < LONE else cls.largest_n
        return 2 <= n <= largest

    @abstractmethod
    def discrepancy(self) -> float:
        """Largest relative difference from the eager kernel, over a small batch with a fixed seed."""

    def _program(
        self,
        make: Callable[[Shape], Lanes],
        code: str,
        members: int = 1,
        transposed: bool = False,
        conjugate: bool = False,
    ) -> tuple[Any, Function]:
        """The program for matrices that come so, and the function that its method ``code`` makes."""
        key = code, members, transposed, conjugate
        known = self._programs.get(key)
        if known is None:
            double, is_complex = self.dtype.to_real() is torch.float64, self.dtype.is_complex
            program = make(Shape(self.n, double, is_complex, members, transposed, conjugate, self.wide))
            self._programs[key] = known = program, FUNCTION(executable(getattr(program, code)()))
        return known

    def _notes(self, kinds: int, count: int) -> Tensor:
        """Room for what a program notes of so many matrices; the last group fills as many places as there are lanes."""
        places = -(-count // self.lanes) * self.lanes
        return torch.empty(kinds, places, dtype=self.dtype.to_real(), device=CPU)

    def _call(self, function: Function, job: Job, A: Tensor, count: int, work: int, workspace: int) -> None:
        """Work on ``count`` matrices of A, of so many multiply-adds each, with so many bytes for each thread."""
        job.matrices, job.matrices_step = A.data_ptr(), A.stride(0) * A.element_size()
        self._share(function, job, count, work, workspace)

    def _share(self, function: Function, job: Job, count: int, work: int, workspace: int) -> None:
        """The same of matrices that the job names, among threads."""
        parts, begins, threads = 1, None, threads_for(count * work)
        if threads > 1:
            parts, begins = share(count, self.lanes, PARTS * threads)
            threads = min(threads, parts)
        job.parts, job.end = parts, count
        job.begins = ctypes.addressof(begins) if begins else ctypes.addressof(job) + Job.first.offset
        job.workspace, job.workspace_step = _workspace.address(workspace * threads), workspace
        held = _workspace.memory  # whatever else this thread is interrupted for
        parallel(function, job, threads)
        del held


def by_rows(A: Tensor) -> Tensor:
    """A with each matrix contiguous; a copy where it is not."""
    n = A.shape[-1]
    return A if A.stride()[1:] == (n, 1) else A.contiguous()
