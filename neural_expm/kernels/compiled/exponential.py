"""The compiled exponential (``batched.cpp``, ``rows.cpp``): rungs as C structures, and the calls."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..calling import CPU, WORK_PER_THREAD, Library, checked, threads_for
from ..exponential_kernel import (
    FRECHET_PRODUCTS,
    VALUE_PRODUCTS,
    Bound,
    ExponentialKernel,
    Rungs,
    worth_sorting,
)
from .builtin import builtin

# From rows of so many bytes on a register holds a piece of a row instead of one entry of many matrices; up to LARGEST_N
# that is faster than batched GEMMs (benchmarks/scaling.py).
ROW_BYTES, LARGEST_N = 56, 128
# From this n on, of values and of derivatives, threads share a matrix where there are fewer matrices than threads, and
# from half of it on a complex one.  Below, waiting for another thread and fetching what it has just written (some
# 9 GB/s) takes longer than computing it.
SHARED_FROM = 80, 64


class Network(ctypes.Structure):
    """Weights of a tier with a number of squarings."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("products", ctypes.c_int64),
        ("squarings", ctypes.c_int64),
        ("identity", ctypes.c_double),
    )


class _Ladder(ctypes.Structure):
    _fields_ = (
        ("radii", ctypes.c_void_p),
        ("majorants", ctypes.c_void_p),
        ("ratio", ctypes.c_double),
        ("rungs", ctypes.c_int64),
        ("least", ctypes.c_int64),
        ("networks", ctypes.POINTER(Network)),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("ladder", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("how", ctypes.c_int64),
    )


def _ladder(rungs: Rungs) -> _Ladder:
    """The structure that the library reads; the first one made stays, whatever other threads make."""
    if "compiled" not in rungs.kept:
        networks = (Network * len(rungs))(
            *(
                Network(weights.data_ptr(), products, squarings, identity)
                for products, (weights, identity, squarings) in zip(
                    rungs.products, rungs.networks, strict=True
                )
            )
        )
        radii, majorants = rungs.radii.data_ptr(), rungs.majorants.data_ptr()
        ladder = _Ladder(radii, majorants, rungs.ratio, len(rungs), rungs.derivative_level, networks)
        rungs.kept.setdefault("compiled", ladder)
    return rungs.kept["compiled"]


class Kernel(ExponentialKernel, Library):
    """exp and its Fréchet derivative for one n and dtype."""

    @staticmethod
    def file(n: int, dtype: torch.dtype) -> str:
        return "rows.cpp" if n * dtype.to_real().itemsize >= ROW_BYTES else "batched.cpp"

    @staticmethod
    def defines(n: int, dtype: torch.dtype) -> dict[str, int]:
        value, derivative = SHARED_FROM
        shared = {"SHARED_FROM": value, "SHARED_DERIVATIVE_FROM": derivative}
        return {"WORTH_SORTING": worth_sorting(n, dtype), **shared}

    @staticmethod
    def worthwhile(n: int, count: int) -> bool:
        return n <= LARGEST_N

    def __init__(self, library: ctypes.CDLL, n: int, dtype: torch.dtype) -> None:
        super().__init__(library, n, dtype)
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._value.argtypes = (pointer, integer, pointer, integer, pointer, pointer, integer)
        self._packed_value = library.neural_expm_packed_value
        self._packed_value.argtypes = (pointer, pointer, pointer, pointer)
        self._value_at_once = builtin(library, "neural_expm_value_at_once") or self._packed_value
        self._packed_frechet = library.neural_expm_packed_frechet
        self._packed_frechet.argtypes = (pointer, *self._packed_value.argtypes)
        self._frechet.argtypes = (pointer, pointer, integer, pointer, pointer, pointer, integer)

    def value(self, A: Tensor, rungs: Rungs, trust: bool, out: Tensor | None) -> tuple[Tensor, bool]:
        """As :meth:`ExponentialKernel.value`."""
        count = A.shape[0]
        level = torch.empty(count, dtype=torch.uint8, device=CPU)
        status = self._value(
            ctypes.byref(self._source(A)),
            count,
            ctypes.byref(_ladder(rungs)),
            trust,
            level.data_ptr(),
            None if out is None else out.data_ptr(),
            self._threads(count, VALUE_PRODUCTS),
        )
        return level, checked(status)

    def bound(self, count: int, rungs: Rungs) -> Bound:
        """As :meth:`ExponentialKernel.bound`."""
        value_of, frechet_of, empty_like = self._packed_value, self._packed_frechet, torch.empty_like
        ladder = ctypes.addressof(_ladder(rungs))
        work, more = self._work(count, VALUE_PRODUCTS), self._work(count, FRECHET_PRODUCTS)
        # Beyond, other threads of Python would wait for longer than ctypes takes.
        value_at_once = self._value_at_once if work <= 2 * WORK_PER_THREAD else value_of
        alone = _Batch(ladder, count, 1, 0)
        by_one = work < 2 * WORK_PER_THREAD or (count == 1 and self.n * self.parts < SHARED_FROM[0])
        alone_at = ctypes.addressof(alone) if by_one else 0

        def value(A: Tensor, levels: int) -> Tensor | None:
            out = empty_like(A)
            if alone_at:
                status = value_at_once(A.data_ptr(), levels, out.data_ptr(), alone_at)
            else:
                batch = _Batch(ladder, count, threads_for(work), 0)
                status = value_of(A.data_ptr(), levels, out.data_ptr(), ctypes.addressof(batch))
            return None if status and checked(status) else out

        def frechet(A: Tensor, E: Tensor, levels: int) -> Tensor:
            out, how = empty_like(E), (not A.is_contiguous()) + 2 * A.is_conj()
            batch = _Batch(ladder, count, threads_for(more), how)
            status = frechet_of(A.data_ptr(), E.data_ptr(), levels, out.data_ptr(), ctypes.addressof(batch))
            checked(status)
            return out

        return Bound(value, frechet, (rungs, alone))

    def frechet(self, A: Tensor, E: Tensor, rungs: Rungs, level: Tensor, out: Tensor) -> None:
        """As :meth:`ExponentialKernel.frechet`."""
        count = A.shape[0]
        status = self._frechet(
            ctypes.byref(self._source(A)),
            ctypes.byref(self._source(E)),
            count,
            ctypes.byref(_ladder(rungs)),
            level.data_ptr(),
            out.data_ptr(),
            self._threads(count, FRECHET_PRODUCTS),
        )
        checked(status)
