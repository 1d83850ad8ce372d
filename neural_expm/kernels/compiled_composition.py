"""The compiled sign and square root (``composition.cpp``): passes as C structures, and the calls."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .calling import Library, checked
from .composition import Algebra, Stage, root_stage, sign_stage
from .layout import BatchFirst

# Largest n that is faster one-register-many-matrices than through batched GEMMs; from FILLED_N on only where the
# registers are filled, since idle lanes cost as much as busy ones.
LARGEST_N, FILLED_N, FILLED_COUNT = 32, 16, 8

# Products of a matrix, to judge how many threads a batch is worth.
VALUE_PRODUCTS, FRECHET_PRODUCTS = 30, 90
# A pass that the check of a library runs: gentle stages, Newton–Schulz, and the R of both.
GENTLE, NEWTON_SCHULZ, RADIUS = (1.6, -1.0, 0.4), (15 / 8, -10 / 8, 3 / 8), 1.4


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


class Passes:
    """The stages for general and for Hermitian matrices as the library reads them.

    Args:
        general, hermitian: stages, their R_t (None: nothing to check), and the scale that the first of them wants.
        most: passes that a matrix may take.
    """

    def __init__(
        self,
        general: tuple[Sequence[Stage], Sequence[float] | None, float],
        hermitian: tuple[Sequence[Stage], Sequence[float] | None, float],
        most: int,
    ) -> None:
        self.most = most
        self.tables = [
            (_Stage * len(stages))(
                *(
                    _Stage(*stage, math.inf if radii is None else radii[t] * radii[t])
                    for t, stage in enumerate(stages)
                )
            )
            for stages, radii, _ in (general, hermitian)
        ]
        self.kinds = (_Pass * 2)(
            *(
                _Pass(ctypes.addressof(table), len(table), scale)
                for table, (_, _, scale) in zip(self.tables, (general, hermitian), strict=True)
            )
        )


@dataclass
class Record:
    """Of each matrix: its scale, residual, passes, whether it is Hermitian, and whether it failed; and if any did."""

    scale: Tensor
    residual: Tensor
    passes: Tensor
    hermitian: Tensor
    failed: Tensor
    any_failed: bool


class _Kernel(Library):
    """A composition and its Fréchet derivative for one n and dtype."""

    hopeless: ClassVar[list[int]]  # which of the matrices of the check have no value

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
        """Out ← f(A) of the matrices whose certificate holds; the rows of the others are left alone.

        Args:
            A: shape (batch, n, n), any strides.
            accepted, largest: a matrix is done when its residual is at most ``accepted`` · max(1, ‖X‖²), where X is the
                value of the scaled matrix, and at most ``largest``; otherwise it fails.
            trust: every matrix is written, and none has failed.
            out: contiguous (batch, n, n); None to ask for the record alone.
        """
        count, real = A.shape[0], self.dtype.to_real()
        record = Record(
            scale=torch.empty(count, dtype=real),
            residual=torch.empty(count, dtype=real),
            passes=torch.empty(count, dtype=torch.int64),
            hermitian=torch.empty(count, dtype=torch.bool),
            failed=torch.empty(count, dtype=torch.bool),
            any_failed=False,
        )
        pointers = (record.scale, record.residual, record.passes, record.hermitian, record.failed)
        status = self._value(
            ctypes.byref(self._source(A)),
            count,
            passes.kinds,
            ctypes.byref(_Rule(accepted, largest, passes.most, trust)),
            ctypes.byref(_Record(*(tensor.data_ptr() for tensor in pointers))),
            None if out is None else out.data_ptr(),
            self._threads(count, VALUE_PRODUCTS),
        )
        record.any_failed = checked(status)
        return record

    def frechet(
        self,
        A: Tensor,
        E: Tensor,
        passes: Passes,
        hermitian: Tensor,
        taken: Tensor,
        scale: Tensor,
        out: Tensor,
    ) -> None:
        """Out ← L(A, E); the rows of matrices with no passes are left alone.

        Args:
            A, E: shape (batch, n, n), any strides.
            hermitian, taken, scale: of a :class:`Record`, contiguous; ``taken`` are the passes.
            out: contiguous (batch, n, n).
        """
        count = A.shape[0]
        status = self._frechet(
            ctypes.byref(self._source(A)),
            ctypes.byref(self._source(E)),
            count,
            passes.kinds,
            passes.most,
            hermitian.data_ptr(),
            taken.data_ptr(),
            scale.data_ptr(),
            out.data_ptr(),
            self._threads(count, FRECHET_PRODUCTS),
        )
        checked(status)

    def _start(self, X: Tensor) -> tuple[Tensor, ...]:
        """The state of the eager kernel for scaled pairs (2, batch, n, n)."""
        return (X,)

    def _stage(self, state: tuple[Tensor, ...], stage: Stage) -> tuple[Tensor, ...]:
        """One stage by the eager kernel."""
        algebra = Algebra(BatchFirst, True)
        (X,) = state
        W = algebra.multiply(X, X)
        return (sign_stage(algebra, X, W, algebra.multiply(W, W), stage),)

    def _finish(self, X: Tensor, scale: Tensor) -> Tensor:
        return X

    def _spectrum(self) -> Tensor:
        """Eigenvalues near which the check computes."""
        return torch.ones(self.n)

    def _sample(self, count: int) -> Tensor:
        """Matrices that need one pass or several, a third of them Hermitian, the fifth one negative."""
        generator = torch.Generator().manual_seed(self.n)
        noise = torch.randn(count, self.n, self.n, dtype=self.dtype, generator=generator) / (4 * self.n**0.5)
        A = torch.diag(self._spectrum()) * torch.linspace(0.5, 2, count)[:, None, None] + noise
        A[::3] = A[::3] + A[::3].mH
        A[4] = -A[4]
        return A

    def discrepancy(self) -> float:
        """Largest relative difference from the eager kernel, over a small batch with a fixed seed."""
        count = 19
        A = self._sample(count)
        E = torch.randn(A.shape, dtype=A.dtype, generator=torch.Generator().manual_seed(0))
        general, hermitian = [GENTLE] * 2 + [NEWTON_SCHULZ] * 4, [NEWTON_SCHULZ] * 2
        passes = Passes((general, [RADIUS] * 6, 0.75), (hermitian, None, 1.0), 6)
        value, derivative = torch.zeros_like(A), torch.zeros_like(A)
        accepted = 64 * self.n * torch.finfo(self.dtype).eps
        record = self.value(A.mH, passes, accepted, 1e-3, False, value)
        taken = torch.where(record.failed, 0, record.passes)
        self.frechet(A.mH, E, passes, record.hermitian, taken, record.scale, derivative)
        if record.failed.nonzero().flatten().tolist() != self.hopeless:
            return math.inf
        worst = 0.0
        for row in torch.nonzero(~record.failed).flatten().tolist():
            scale = record.scale[row : row + 1]
            state = self._start(torch.stack([A[row : row + 1].mH.resolve_conj(), E[row : row + 1]]) * scale)
            for stage in (hermitian if record.hermitian[row] else general) * int(taken[row]):
                state = self._stage(state, stage)
            expected = self._finish(state[0], scale)
            for got, right in zip((value, derivative), expected, strict=True):
                worst = max(worst, float((got[row] - right[0]).abs().max() / right.abs().max()))
        return worst


class SignKernel(_Kernel):
    """sign."""

    defines: ClassVar = {"COUPLED": 0}
    hopeless: ClassVar[list[int]] = []

    def _spectrum(self) -> Tensor:
        # Of both signs: at a definite matrix the derivative is zero.
        return 1.0 - 2.0 * (torch.arange(self.n) % 2)


class RootKernel(_Kernel):
    """The square root."""

    defines: ClassVar = {"COUPLED": 1}
    hopeless: ClassVar[list[int]] = [4]

    def _start(self, X: Tensor) -> tuple[Tensor, ...]:
        Z = torch.zeros_like(X)
        Z[0] = torch.eye(self.n, dtype=self.dtype)
        return X, Z

    def _stage(self, state: tuple[Tensor, ...], stage: Stage) -> tuple[Tensor, ...]:
        algebra = Algebra(BatchFirst, True)
        Y, Z = state
        W = algebra.multiply(Z, Y)
        return root_stage(algebra, Y, Z, W, algebra.multiply(W, W), stage)

    def _finish(self, X: Tensor, scale: Tensor) -> Tensor:
        return X / scale.sqrt()
