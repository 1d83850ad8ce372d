"""How a compiled library is called: batches as C structures, threads, and what every kind of kernel has in common."""

from __future__ import annotations

import ctypes
import os
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

# Multiply-adds that one more thread is worth: some ten microseconds, what it takes to wake one that waits.
WORK_PER_THREAD = 1 << 17


# A child after a fork has none of the threads that OpenMP keeps, and would wait for them for ever.
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


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
        library: compiled from ``file(n, dtype)`` with ``defines`` besides the size and the field.
    """

    name = "compiled"
    defines: ClassVar[dict[str, Any]] = {}

    @staticmethod
    @abstractmethod
    def file(n: int, dtype: torch.dtype) -> str:
        """The source for this size."""

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

    def _threads(self, count: int, products: int) -> int:
        if _forked:
            return 1
        work = count * products * self.n**3 * self.parts**2
        return max(1, min(torch.get_num_threads(), work // WORK_PER_THREAD))


def checked(status: int) -> bool:
    """The status of a call as a truth value.

    Raises:
        MemoryError: no memory for the workspace.
    """
    if status < 0:
        raise MemoryError("neural_expm: no memory for the workspace of a compiled kernel")
    return status > 0
