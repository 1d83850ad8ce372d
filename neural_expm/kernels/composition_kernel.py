"""What native kernels of sign and the square root have in common: what they are asked, what they tell, their check."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .composition import Algebra, Stage, root_stage, sign_stage, tangent
from .layout import BatchFirst

# The stages of a pass, their R_t (None: nothing to check), and the scale that the first of them wants.
Kind = tuple[Sequence[Stage], Sequence[float] | None, float]
# A pass that the check of a kernel runs: gentle stages, Newton–Schulz, and the R of both.
GENTLE, NEWTON_SCHULZ, RADIUS = (1.6, -1.0, 0.4), (15 / 8, -10 / 8, 3 / 8), 1.4


class Passes:
    """The stages for general and for Hermitian matrices.

    Args:
        general, hermitian: see :data:`Kind`.
        most: passes that a matrix may take.

    Attributes:
        kept: what kernels have made of the stages, by keys of theirs.
    """

    def __init__(self, general: Kind, hermitian: Kind, most: int) -> None:
        self.general, self.hermitian, self.most = general, hermitian, most
        self.kept: dict[Any, Any] = {}

    @property
    def kinds(self) -> tuple[Kind, Kind]:
        """Of general and of Hermitian matrices."""
        return self.general, self.hermitian


@dataclass
class Record:
    """Of each matrix: its scale, residual, passes, whether it is Hermitian, and whether it failed; and if any did."""

    scale: Tensor
    residual: Tensor
    passes: Tensor
    hermitian: Tensor
    failed: Tensor
    any_failed: bool


class Course(NamedTuple):
    """How matrices went: which stages they took, how often, and from which scale; contiguous, one entry for each."""

    hermitian: Tensor
    passes: Tensor  # 0 for those that were not answered
    scale: Tensor


class CompositionKernel:
    """A composition and its Fréchet derivative for one n and dtype."""

    n: int
    dtype: torch.dtype
    hopeless: ClassVar[list[int]]  # which of the matrices of the check have no value

    @abstractmethod
    def value(
        self, A: Tensor, passes: Passes, accepted: float, largest: float, trust: bool, out: Tensor | None
    ) -> Record:
        """Out ← f(A) of the matrices whose certificate holds; the rows of the others may hold anything.

        Args:
            A: shape (batch, n, n), any strides.
            accepted, largest: a matrix is done when its residual is at most ``accepted`` · max(1, ‖X‖²), where X is the
                value of the scaled matrix, and at most ``largest``; otherwise it fails.
            trust: every matrix is written, and none has failed.
            out: contiguous (batch, n, n); None to ask for the record alone.
        """

    @abstractmethod
    def frechet(self, A: Tensor, E: Tensor, passes: Passes, course: Course, out: Tensor) -> None:
        """Out ← L(A, E); the rows of matrices that took no passes may hold anything.

        Args:
            A, E: shape (batch, n, n), any strides.
            course: of a value.
            out: contiguous (batch, n, n).
        """

    # --- the check ----------------------------------------------------------------------------------------------------

    def _start(self, X: Tensor) -> tuple[Tensor, ...]:
        """The state of the eager kernel for scaled pairs (2, batch, n, n)."""
        return (X,)

    def _stage(self, state: tuple[Tensor, ...], stage: Stage) -> tuple[Tensor, ...]:
        """One stage by the eager kernel."""
        algebra = Algebra(BatchFirst, True)
        (X,) = state
        W = algebra.multiply(X, X)
        return (sign_stage(algebra, X, W, algebra.multiply(W, W), stage),)

    @abstractmethod
    def _finish(self, X: Tensor, scale: Tensor) -> Tensor:
        """The value and the derivative from the state after the last stage."""

    def _spectrum(self) -> Tensor:
        """Eigenvalues near which the check computes."""
        return torch.ones(self.n, dtype=self.dtype.to_real())

    def _sample(self, count: int) -> Tensor:
        """Matrices that need one pass or several, a third of them Hermitian, the fifth one negative."""
        generator = torch.Generator().manual_seed(self.n)
        noise = torch.randn(count, self.n, self.n, dtype=self.dtype, generator=generator) / (4 * self.n**0.5)
        sizes = torch.linspace(0.5, 2, count, dtype=self.dtype.to_real())
        A = torch.diag(self._spectrum()) * sizes[:, None, None] + noise
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
        self.frechet(A.mH, E, passes, Course(record.hermitian, taken, record.scale), derivative)
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


class SignCheck(CompositionKernel):
    """Of the kernels of sign."""

    hopeless: ClassVar[list[int]] = []

    def _finish(self, X: Tensor, scale: Tensor) -> Tensor:
        tangent(Algebra(BatchFirst, True), X)
        return X

    def _spectrum(self) -> Tensor:
        # Of both signs: at a definite matrix the derivative is zero.
        return 1 - 2 * (torch.arange(self.n, dtype=self.dtype.to_real()) % 2)


class RootCheck(CompositionKernel):
    """Of the kernels of the square root."""

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
