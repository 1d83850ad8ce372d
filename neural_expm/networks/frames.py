"""Frames: what is known about a matrix function, put around the part that is learned.

A frame turns A into the network's input, a cheap polynomial baseline of f(A) and a scale; the network returns
the residual in units of that scale; the frame puts baseline and residual together and finishes (squarings,
polishing products). ``finish(prepared, None)`` is the baseline alone: every model card states it beside the
network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Prepared:
    """What a frame hands to the network, and keeps for itself, for a batch of (B, n, n) matrices."""

    channels: Tensor  # (B, c, n, n): the matrices the network sees
    cues: Tensor | None  # (B, k): the scalars it sees
    baseline: Tensor  # (B, n, n)
    scale: Tensor  # (B, 1, 1) or (1, 1, 1): the unit of the residual
    matrix: Tensor  # (B, n, n): A in the frame's own units
    shift: Tensor | None = None  # (B, 1, 1): exp's trace shift μ, the square root's norm ‖A‖_F


class RawFrame(nn.Module):
    """No structure: the network sees A and returns f(A). The study uses it to compare encodings."""

    channels, cues = 1, 0
    #: Whether ``finish`` ends with products that pull the sum of baseline and residual towards f(A).
    polishes = False

    def __init__(self, symmetric: bool = False):
        super().__init__()
        self.symmetric = symmetric

    def prepare(self, matrices: Tensor) -> Prepared:
        return Prepared(
            matrices.unsqueeze(1), None, torch.zeros_like(matrices), matrices.new_ones(1, 1, 1), matrices
        )

    def assemble(self, prepared: Prepared, residual: Tensor | None) -> Tensor:
        """Return baseline + scale · residual, symmetric where f(A) is."""
        if residual is None:
            return prepared.baseline
        if self.symmetric:
            residual = 0.5 * (residual + residual.mT)
        return prepared.baseline + prepared.scale * residual

    def finish(self, prepared: Prepared, residual: Tensor | None, polish: bool = True) -> Tensor:
        """Return f(A); ``residual=None`` leaves the network out, ``polish=False`` the last products."""
        return self.assemble(prepared, residual)


class ExpFrame(RawFrame):
    """exp: trace shift, scaling, the residual of a Taylor polynomial, then squarings.

    B = (A − μI)/2ˢ with μ = tr A/n (Higham, *Functions of Matrices*, section 10.7.3), θ = ‖B‖_F/√n, and
    exp(A) = e^μ · (T_d(B) + θ^{d+1}·R(B/θ, θ))^{2ˢ}: R is of order one and smooth down to θ = 0. The network
    sees D = B/θ, D² and θ.
    """

    channels, cues = 2, 1

    def __init__(self, squarings: int = 1, degree: int = 2, symmetric: bool = False):
        super().__init__(symmetric)
        self.squarings, self.degree = squarings, degree

    def prepare(self, matrices: Tensor) -> Prepared:
        n = matrices.shape[-1]
        identity = torch.eye(n, dtype=matrices.dtype, device=matrices.device)
        shift = matrices.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        scaled = (matrices - shift * identity) / 2**self.squarings
        # The floor keeps A = μI differentiable: there the direction is zero and so is the residual's scale.
        theta = (scaled.square().sum((-2, -1), keepdim=True) / n + 1e-20).sqrt()
        baseline = identity.expand_as(scaled)
        for k in range(self.degree, 0, -1):
            baseline = identity + scaled @ baseline / k
        direction = scaled / theta
        return Prepared(
            torch.stack([direction, direction @ direction], dim=1),
            theta.flatten(-2) * 2**self.squarings,
            baseline,
            theta ** (self.degree + 1),
            scaled,
            shift,
        )

    def finish(self, prepared: Prepared, residual: Tensor | None, polish: bool = True) -> Tensor:
        power = self.assemble(prepared, residual)
        for _ in range(self.squarings):
            power = power @ power
        assert prepared.shift is not None
        return prepared.shift.exp() * power


def polynomial(matrices: Tensor, powers: list[int], coefficients: list[float]) -> Tensor:
    """Return Σ cₖ Aᵖᵏ for increasing powers, with one product for A² and one for each further power."""
    power = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device).expand_as(matrices)
    square = matrices @ matrices
    total, exponent = torch.zeros_like(matrices), 0
    for p, coefficient in zip(powers, coefficients, strict=True):
        while exponent < p:
            double = p - exponent >= 2
            power, exponent = power @ (square if double else matrices), exponent + (2 if double else 1)
        total = total + coefficient * power
    return total


def fourth_mean(matrices: Tensor) -> Tensor:
    """Return (‖A²‖_F²/n)^{1/4} as (B, 1, 1): for normal A the fourth-power mean of |λ|."""
    # A is divided by its largest entry first: a fourth power leaves the range of float32 early.
    largest = matrices.detach().abs().amax((-2, -1), keepdim=True)
    scaled = matrices / largest
    return largest * ((scaled @ scaled).square().sum((-2, -1), keepdim=True) / matrices.shape[-1]) ** 0.25


class HomogeneousFrame(RawFrame):
    """What sign and square root share: A is normalised, the network sees A and the baseline."""

    channels = 2
    polishes = True

    def __init__(self, scale: float, steps: list[float], symmetric: bool = False):
        super().__init__(symmetric)
        self.scale = scale
        #: Learned lengths t of the polishing steps.
        self.steps = nn.Parameter(torch.tensor(steps, dtype=torch.float32))

    def _prepared(self, matrices: Tensor, baseline: Tensor, norm: Tensor | None) -> Prepared:
        channels = torch.stack([matrices, baseline], dim=1)
        return Prepared(channels, None, baseline, matrices.new_full((1, 1, 1), self.scale), matrices, norm)


class SignFrame(HomogeneousFrame):
    """sign: residual of a baseline B, Riccati steps X ← X − t(XBX − B), one last Newton–Schulz product.

    A is divided by c = (‖A²‖_F²/n)^{1/4}, so that symmetric A has eigenvalues of fourth-power mean one, none
    above n^{1/4}. The baseline is an odd polynomial, and if ``rational`` a Newton step X ← ½(X + X⁻¹) and its
    reciprocal X ← 2X(I + X²)⁻¹ (Higham 2008, section 5.3): polynomials are helpless where complex eigenvalues
    come near the imaginary axis, and the reciprocal brings back what Newton threw far out.

    An error E of X ≈ sign(A) need not commute with A, and Newton–Schulz squares only the part that does. The
    Riccati step contracts every part: B commutes with A, so XBX − B = EH + HE + O(E²) with H = B·sign(A),
    and in the eigenbasis each entry shrinks by |1 − t(hᵢ + hⱼ)|, where hᵢ ≈ 1.
    """

    def __init__(
        self,
        powers: list[int],
        coefficients: list[float],
        scale: float,
        steps: list[float],
        rational: bool = False,
        symmetric: bool = False,
    ):
        super().__init__(scale, steps, symmetric)
        self.powers, self.coefficients, self.rational = powers, coefficients, rational

    def prepare(self, matrices: Tensor) -> Prepared:
        unit = matrices / fourth_mean(matrices)
        baseline = polynomial(unit, self.powers, self.coefficients)
        if self.rational:
            identity = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
            newton = 0.5 * (baseline + torch.linalg.inv(baseline))
            baseline = 2 * torch.linalg.solve(identity + newton @ newton, newton)
        return self._prepared(unit, baseline, None)

    def finish(self, prepared: Prepared, residual: Tensor | None, polish: bool = True) -> Tensor:
        x, b = self.assemble(prepared, residual), prepared.baseline
        if not polish:
            return x
        for step in self.steps.to(x.dtype):
            x = x - step * (x @ b @ x - b)
        x = 0.5 * x @ (3 * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device) - x @ x)
        return 0.5 * (x + x.mT) if self.symmetric else x


class SqrtFrame(HomogeneousFrame):
    """Square root of A/‖A‖_F: residual of a polynomial, then Newton steps X ← X + t(A − X²), a product each.

    Newton's correction C solves XC + CX = A − X² (Higham 2008, section 6.3); t stands for the inverse of that
    Sylvester operator, and in A's eigenbasis each entry of the error shrinks by |1 − t(rᵢ + rⱼ)|.
    """

    def __init__(
        self,
        powers: list[int],
        coefficients: list[float],
        scale: float,
        steps: list[float],
        symmetric: bool = False,
    ):
        super().__init__(scale, steps, symmetric)
        self.powers, self.coefficients = powers, coefficients

    def prepare(self, matrices: Tensor) -> Prepared:
        norm = matrices.square().sum((-2, -1), keepdim=True).sqrt()
        unit = matrices / norm
        return self._prepared(unit, polynomial(unit, self.powers, self.coefficients), norm)

    def finish(self, prepared: Prepared, residual: Tensor | None, polish: bool = True) -> Tensor:
        x = self.assemble(prepared, residual)
        if polish:
            for step in self.steps.to(x.dtype):
                x = x + step * (prepared.matrix - x @ x)
            x = 0.5 * (x + x.mT) if self.symmetric else x
        assert prepared.shift is not None
        return prepared.shift.sqrt() * x


FRAMES: dict[str, type[RawFrame]] = {"raw": RawFrame, "expm": ExpFrame, "sign": SignFrame, "sqrtm": SqrtFrame}
