"""The two functions that compositions compute: sign, and the square root as its coupled form."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.composition import Algebra, Stage, root_stage, sign_stage, tangent
from .composition import Composition


class EquivariantSign(Composition):
    """sign(A).  Classical equivalent: ``scipy.linalg.signm``.

    Source: Nakatsukasa & Freund (2016), SIAM Rev. 58(3); Amsel et al., "The Polar Express" (2025).
    """

    function = "sign"

    def _radius(self, hermitian: bool) -> float:
        return 1.0 if hermitian else self.config["general_scale"]

    def _state(self, algebra: Algebra, X: Tensor) -> tuple[Tensor, ...]:
        return (X,)

    def _square(self, algebra: Algebra, state: tuple[Tensor, ...]) -> Tensor:
        return algebra.multiply(state[0], state[0])

    def _advance(
        self, algebra: Algebra, state: tuple[Tensor, ...], W: Tensor, square: Tensor, stage: Stage
    ) -> tuple[Tensor, ...]:
        return (sign_stage(algebra, state[0], W, square, stage),)

    def _settle(self, algebra: Algebra, state: tuple[Tensor, ...]) -> None:
        tangent(algebra, state[0])

    def _growth(self, scale: Tensor) -> Tensor:
        return torch.ones_like(scale)


class EquivariantSquareRoot(Composition):
    """The principal square root.  Classical equivalent: ``scipy.linalg.sqrtm``.

    Source: Higham, *Functions of Matrices*, theorem 6.9 and section 6.7.
    """

    function = "sqrtm"
    products_per_stage = 4

    def _radius(self, hermitian: bool) -> float:
        # W = A/c² needs the square of the spectral radius that X = W^{1/2} needs.
        return 1.0 if hermitian else self.config["general_scale"] ** 2

    def _state(self, algebra: Algebra, X: Tensor) -> tuple[Tensor, ...]:
        Z = torch.zeros_like(X)
        algebra.layout.add_identity(algebra.value(Z), 1.0)
        return X, Z

    def _square(self, algebra: Algebra, state: tuple[Tensor, ...]) -> Tensor:
        return algebra.multiply(state[1], state[0])

    def _advance(
        self, algebra: Algebra, state: tuple[Tensor, ...], W: Tensor, square: Tensor, stage: Stage
    ) -> tuple[Tensor, ...]:
        Y, Z = state
        return root_stage(algebra, Y, Z, W, square, stage)

    def _growth(self, scale: Tensor) -> Tensor:
        # (A/c²)^{1/2} = A^{1/2}/c, and the derivative scales alike: its direction was divided by c² too.
        return scale.rsqrt()
