"""How native code is called: batches as C structures, threads, and what every kind of compiled kernel has in common."""

from __future__ import annotations

import ctypes
import os
import threading
from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

# Multiply-adds that one more thread is worth: some ten microseconds, what it takes to wake one that waits.
WORK_PER_THREAD = 1 << 17


# Said wherever a tensor is made: a program may have chosen another default device.
CPU = torch.device("cpu")
Result = TypeVar("Result")
FIELDS = (torch.float32, torch.float64, torch.complex64, torch.complex128)
# Relative error that the check of a fresh kernel allows: a few hundred roundings.
CHECK = {torch.float32: 1e-4, torch.float64: 1e-12}

# What a caller in a hurry has bound of kernels, by keys of its own; forgotten with them.
BOUND: dict[Any, Any] = {}

# A child after a fork has none of the threads that OpenMP keeps, and would wait for them for ever.
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads_for(work: int) -> int:
    """How many threads so many multiply-adds are worth."""
    if work < 2 * WORK_PER_THREAD or _forked:
        return 1
    return min(torch.get_num_threads(), work // WORK_PER_THREAD)


def share(count: int, grain: int, most: int) -> tuple[int, ctypes.Array[ctypes.c_int64]]:
    """Parts of a batch for threads: how many, and where each begins and the last one ends.

    Args:
        count: matrices.
        grain: parts begin at a multiple of it.
        most: parts.
    """
    groups = -(-count // grain)
    parts = min(most, groups)
    begins = [groups * part // parts * grain for part in range(parts)]
    return parts, (ctypes.c_int64 * (parts + 1))(*begins, count)


@lru_cache(maxsize=1)
def _gomp() -> Any:
    """GNU's entry into a parallel region, of whichever OpenMP runtime torch has loaded; None where there is none."""
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    function.restype = None
    return function


FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # of the address of a job
Function = Callable[[int], None]


def parallel(function: Function, job: ctypes.Structure, threads: int) -> None:
    """Call a FUNCTION with ``job`` in so many of the threads that torch keeps waiting."""
    run = _gomp() if threads > 1 else None
    if run is None:
        function(ctypes.addressof(job))
    else:
        run(function, ctypes.addressof(job), threads, 0)


def aside(function: Callable[[], Result]) -> Result:
    """What a function returns in a thread of its own, which has none of the modes and transforms of this one."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="neural_expm check")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def readable(A: Tensor) -> bool:
    """Whether the kernels can read the memory of A: fake, wrapped and lazily zero tensors have none.

    Where torch's operations are being recorded nothing may happen beside them: a graph would not know of it.
    """
    if type(A) not in (Tensor, torch.nn.Parameter) or A.dtype not in FIELDS:
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return False
    return not (A.is_neg() or A._is_zerotensor() or torch._C._functorch.is_legacy_batchedtensor(A))


class Source(ctypes.Structure):
    """A batch of matrices with any strides."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("matrix", ctypes.c_int64),
        ("row", ctypes.c_int64),
        ("column", ctypes.c_int64),
        ("conjugate", ctypes.c_int64),
    )


class Library:
    """The compiled functions of one kind for one n and dtype; tensors are on the CPU.

    Args:
        library: compiled from ``file(n, dtype)`` with ``defines(n, dtype)`` besides the size and the field.
    """

    name = "compiled"

    @staticmethod
    @abstractmethod
    def file(n: int, dtype: torch.dtype) -> str:
        """The source for this size."""

    @staticmethod
    @abstractmethod
    def defines(n: int, dtype: torch.dtype) -> dict[str, int]:
        """What the source asks to be defined."""

    @staticmethod
    @abstractmethod
    def worthwhile(n: int, count: int) -> bool:
        """Whether ``count`` matrices of this size are faster so than through batched GEMMs."""

    def __init__(self, library: ctypes.CDLL, n: int, dtype: torch.dtype) -> None:
        self.n, self.dtype = n, dtype
        self.parts = 2 if dtype.is_complex else 1
        self._value, self._frechet = library.neural_expm_value, library.neural_expm_frechet

    @abstractmethod
    def discrepancy(self) -> float:
        """Largest relative difference from the eager kernel, over a small batch with a fixed seed."""

    def _source(self, A: Tensor) -> Source:
        matrix, row, column = A.stride()
        parts = self.parts
        return Source(A.data_ptr(), matrix * parts, row * parts, column * parts, A.is_conj())

    def _work(self, count: int, products: int) -> int:
        return count * products * self.n**3 * self.parts**2

    def _threads(self, count: int, products: int) -> int:
        return threads_for(self._work(count, products))


def checked(status: int) -> bool:
    """The status of a call as a truth value.

    Raises:
        MemoryError: no memory for the workspace.
    """
    if status < 0:
        raise MemoryError("neural_expm: no memory for the workspace of a compiled kernel")
    return status > 0
