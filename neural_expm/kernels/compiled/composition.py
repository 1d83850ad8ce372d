"""The compiled sign and square root (``composition.cpp``): passes as C structures, and the calls."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from ..calling import CPU, Library, checked
from ..composition_kernel import CompositionKernel, Course, Passes, Record, RootCheck, SignCheck

# Largest n that is faster one-register-many-matrices than through batched GEMMs; from FILLED_N on only where the
# registers are filled, since idle lanes cost as much as busy ones.
LARGEST_N, FILLED_N, FILLED_COUNT = 32, 16, 8

# Products of a matrix, to judge how many threads a batch is worth.
VALUE_PRODUCTS, FRECHET_PRODUCTS = 30, 90


class _Stage(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_double) for name in ("a", "b", "c", "limit"))


class _Pass(ctypes.Structure):
    _fields_ = (("stages", ctypes.c_void_p), ("count", ctypes.c_int64), ("scale", ctypes.c_double))


class _Rule(ctypes.Structure):
    _fields_ = (
        ("accepted", ctypes.c_double),
        ("largest", ctypes.c_double),
        ("passes", ctypes.c_int64),
        ("trust", ctypes.c_int64),
    )


class _Record(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("scale", "residual", "passes", "hermitian", "failed")
    )


def _structures(passes: Passes) -> Any:
    """The stages as the library reads them."""
    if "compiled" not in passes.kept:
        tables = [
            (_Stage * len(stages))(
                *(
                    _Stage(*stage, math.inf if radii is None else radii[t] * radii[t])
                    for t, stage in enumerate(stages)
                )
            )
            for stages, radii, _ in passes.kinds
        ]
        kinds = (_Pass * 2)(
            *(
                _Pass(ctypes.addressof(table), len(table), scale)
                for table, (_, _, scale) in zip(tables, passes.kinds, strict=True)
            )
        )
        # The structures only point to the tables; the first ones made stay, whatever other threads make.
        passes.kept.setdefault("compiled", (tables, kinds))
    return passes.kept["compiled"][1]


class _Kernel(CompositionKernel, Library):
    """A composition and its Fréchet derivative for one n and dtype."""

    @staticmethod
    def file(n: int, dtype: torch.dtype) -> str:
        return "composition.cpp"

    @staticmethod
    def worthwhile(n: int, count: int) -> bool:
        return n <= LARGEST_N and (n < FILLED_N or count >= FILLED_COUNT)

    def __init__(self, library: ctypes.CDLL, n: int, dtype: torch.dtype) -> None:
        super().__init__(library, n, dtype)
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._value.argtypes = [pointer, integer, pointer, pointer, pointer, pointer, integer]
        self._frechet.argtypes = [
            *(pointer, pointer, integer, pointer, integer),
            *(pointer, pointer, pointer, pointer, integer),
        ]

    def value(
        self, A: Tensor, passes: Passes, accepted: float, largest: float, trust: bool, out: Tensor | None
    ) -> Record:
        """As :meth:`CompositionKernel.value`."""
        count, real = A.shape[0], self.dtype.to_real()
        record = Record(
            scale=torch.empty(count, dtype=real, device=CPU),
            residual=torch.empty(count, dtype=real, device=CPU),
            passes=torch.empty(count, dtype=torch.int64, device=CPU),
            hermitian=torch.empty(count, dtype=torch.bool, device=CPU),
            failed=torch.empty(count, dtype=torch.bool, device=CPU),
            any_failed=False,
        )
        pointers = (record.scale, record.residual, record.passes, record.hermitian, record.failed)
        status = self._value(
            ctypes.byref(self._source(A)),
            count,
            _structures(passes),
            ctypes.byref(_Rule(accepted, largest, passes.most, trust)),
            ctypes.byref(_Record(*(tensor.data_ptr() for tensor in pointers))),
            None if out is None else out.data_ptr(),
            self._threads(count, VALUE_PRODUCTS),
        )
        record.any_failed = checked(status)
        return record

    def frechet(self, A: Tensor, E: Tensor, passes: Passes, course: Course, out: Tensor) -> None:
        """As :meth:`CompositionKernel.frechet`."""
        count = A.shape[0]
        status = self._frechet(
            ctypes.byref(self._source(A)),
            ctypes.byref(self._source(E)),
            count,
            _structures(passes),
            passes.most,
            *(part.data_ptr() for part in course),
            out.data_ptr(),
            self._threads(count, FRECHET_PRODUCTS),
        )
        checked(status)


class SignKernel(_Kernel, SignCheck):
    """sign."""

    @staticmethod
    def defines(n: int, dtype: torch.dtype) -> dict[str, int]:
        return {"COUPLED": 0}


class RootKernel(_Kernel, RootCheck):
    """The square root."""

    @staticmethod
    def defines(n: int, dtype: torch.dtype) -> dict[str, int]:
        return {"COUPLED": 1}
