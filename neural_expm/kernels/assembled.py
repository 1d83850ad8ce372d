"""exp by machine code that needs no compiler: written in milliseconds, in memory, for x86-64 with AVX2 or AVX-512.

The kernel has the face of ``eager``, which answers where there is none: on another processor, under a system that
allows no new code, where the check of fresh code fails, or under NEURAL_EXPM_ASSEMBLE=0, for shapes first met then.
The reason is logged once.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import platform
import sys
import threading
from collections import OrderedDict
from functools import lru_cache

import torch
from torch import Tensor

from ..domain import frobenius_norm
from . import eager
from .assembled_lanes import Job, Shape
from .assembled_program import Program
from .calling import FUNCTION, Function, parallel, readable, share

log = logging.getLogger("neural_expm")

# Where lanes are faster than batched GEMMs (benchmarks/scaling.py): for n up to ALONE_N even with one matrix for all
# lanes, up to LARGEST_N with FEW.
ALONE_N, LARGEST_N, FEW = 12, 32, 16
# Relative error that the check of fresh code allows: a few hundred roundings.
CHECK = {torch.float32: 1e-4, torch.float64: 1e-12}
NORMS_FROM = 1 << 16  # entries of a batch from which on a program of our own finds norms faster than torch
TABLES = 64  # tables of weights that a kernel keeps
_NO_WEIGHTS: list[Tensor] = []

# --- machine code in memory -------------------------------------------------------------------------------------------


class Unavailable(Exception):
    """No machine code here, and why."""


@lru_cache(maxsize=1)
def wide() -> bool:
    """Whether vector registers are those of AVX-512; else those of AVX2.

    Raises:
        Unavailable: there is neither, or the system is not one that the code is written for.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or not sys.platform.startswith(
        ("linux", "darwin")
    ):
        raise Unavailable(f"no assembler for {platform.machine()} under {sys.platform}")
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith(("AVX2", "AVX512")):
        raise Unavailable(f"the assembler needs AVX2, torch finds {capability}")
    return capability.startswith("AVX512")


def executable(code: bytes) -> int:
    """The address of a copy that can be executed and no longer be written to, for the life of the process.

    Raises:
        Unavailable: the system does not allow it.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        address = libc.mmap(
            None, len(code), mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
        )
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        ctypes.memmove(address, code, len(code))
        if libc.mprotect(address, len(code), mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except (OSError, AttributeError) as error:
        raise Unavailable(f"the system allows no new machine code ({error})") from error
    return address


class _Workspace(threading.local):
    """Of one calling thread, reused; grows."""

    memory: Tensor | None = None

    def address(self, size: int) -> int:
        """Where ``size`` bytes begin, on the boundary of a register."""
        if self.memory is None or self.memory.shape[0] < size + 64:
            with torch.inference_mode(False):
                self.memory = torch.empty(size + 64, dtype=torch.uint8)
        return -(-self.memory.data_ptr() // 64) * 64


_workspace = _Workspace()


# --- a kernel ---------------------------------------------------------------------------------------------------------


class Kernel:
    """exp and its Fréchet derivative for one n and dtype; tensors are on the CPU.

    Raises:
        Unavailable: see :func:`wide` and :func:`executable`; or the code computes wrongly.
    """

    name = "assembled"

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        self.n, self.dtype, self.wide = n, dtype, wide()
        self.lanes = (64 if self.wide else 32) // dtype.to_real().itemsize
        self._programs: dict[tuple[bool | int, ...], tuple[Program, Function]] = {}
        self._tables: OrderedDict[tuple[int, int], tuple[list[Tensor], Tensor]] = OrderedDict()
        error = self.discrepancy()
        if not error <= CHECK[dtype.to_real()]:
            raise Unavailable(f"the assembled code is wrong (relative error {error:.1e})")

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
        A = A if transposed else _by_rows(A)
        members, products = (1 if E is None else 2), len(weights)
        program, function = self._program(members, transposed, A.is_conj())
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
            E = _by_rows(E.resolve_conj())
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
        A = A if A.stride()[1:] == (1, self.n) else _by_rows(A)  # a transpose has the same norm
        program, function = self._program(1, norms=True)
        norms = torch.empty(-(-count // self.lanes) * self.lanes, dtype=self.dtype.to_real())
        one = self._table(_NO_WEIGHTS, 0.0, 0)
        job = Job(
            out=norms.data_ptr(), last=count - 1, workspace_step=program.workspace(0), weights=one.data_ptr()
        )
        self._call(function, job, A, count, 4 * self.n**2)
        return norms[:count]

    def _call(self, function: Function, job: Job, A: Tensor, count: int, work: int) -> None:
        """Share ``count`` matrices of A, of so many multiply-adds each, among threads."""
        job.parts, begins = share(count, self.lanes, work)
        job.begins = ctypes.addressof(begins)
        job.matrices, job.matrices_step = A.data_ptr(), A.stride(0) * A.element_size()
        job.workspace = _workspace.address(job.workspace_step * job.parts)
        parallel(function, job, job.parts)

    def _program(
        self, members: int, transposed: bool = False, conjugate: bool = False, norms: bool = False
    ) -> tuple[Program, Function]:
        """The program for such A, and its code."""
        key = members, transposed, conjugate, norms
        if key not in self._programs:
            double, is_complex = self.dtype.to_real() is torch.float64, self.dtype.is_complex
            program = Program(Shape(self.n, double, is_complex, members, transposed, conjugate, self.wide))
            code = program.norms() if norms else program.code()
            self._programs[key] = program, FUNCTION(executable(code))
        return self._programs[key]

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


def _by_rows(A: Tensor) -> Tensor:
    """A with each matrix contiguous; a copy where it is not."""
    n = A.shape[-1]
    return A if A.stride()[1:] == (n, 1) else A.contiguous()


# --- which shapes have one --------------------------------------------------------------------------------------------

_kernels: dict[tuple[int, torch.dtype], Kernel | None] = {}
_failure = ""  # the first one, in words; logged once


def find(A: Tensor) -> Kernel | None:
    """The kernel for a batch of shape (batch, n, n), None if there is none."""
    count, n = A.shape[:2]
    worthwhile = 2 <= n <= (LARGEST_N if count >= FEW else ALONE_N)
    if not worthwhile or A.device.type != "cpu" or not readable(A) or torch.compiler.is_compiling():
        return None
    key = n, A.dtype
    if key not in _kernels:
        _kernels[key] = _make(*key)
    return _kernels[key]


def _make(n: int, dtype: torch.dtype) -> Kernel | None:
    global _failure
    if os.environ.get("NEURAL_EXPM_ASSEMBLE", "1").lower() in ("0", "never", "off"):
        return None
    try:
        return Kernel(n, dtype)
    except Exception as error:
        # Whatever it is, it must not reach a caller who asked for a function of a matrix.
        if not _failure:
            _failure = f"no assembled kernel for n = {n}, {dtype}: {error}"
            # Another processor is ordinary; anything else the user may want to know.
            level = logging.INFO if "assembler" in str(error) else logging.WARNING
            log.log(level, "%s; the eager kernel answers", _failure)
        return None


def failure() -> str:
    """Why an assembled kernel could not be had, in words; empty where none has failed."""
    return _failure


def state() -> dict[tuple[int, torch.dtype], str]:
    """Of each (n, dtype) asked for: ``"ready"`` or ``"none"``."""
    return {key: "none" if kernel is None else "ready" for key, kernel in list(_kernels.items())}


def forget() -> None:
    """Start anew, as a fresh process would."""
    global _failure
    _kernels.clear()
    _failure = ""
