"""The functions with no data-dependent control flow: what ``torch.compile``, ``torch.export`` and ONNX trace.

A program is a nested tuple of plain numbers, so that a tracer takes the whole network as a constant.  The depth is
fixed, squarings are masked, and inside are matrix products, element-wise operations and reductions alone, so that any
runtime can follow.  A matrix beyond the radius of an exponential comes back NaN, never wrong; the compositions check
less, see there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..domain import norm_bound
from .reference import polynomial

LARGEST_RESIDUAL = 1e-3  # of sign and the square root, so that their bound is below the one in the manifest


def numbers(values: Sequence[float], A: Tensor) -> Sequence[Any]:
    """Constants to multiply A by: in double precision tensors, for ONNX exporters round plain numbers to float32."""
    if A.dtype not in (torch.float64, torch.complex128):
        return values
    return [torch.tensor(value, dtype=torch.float64, device=A.device) for value in values]


@dataclass(frozen=True)
class ExponentialProgram:
    """A tier and its squarings: heads ((q, v) rows), read-out, radius of the tier, number of squarings."""

    heads: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    readout: tuple[float, ...]
    radius: float
    squarings: int

    def __call__(self, A: Tensor) -> Tensor:
        """The exponential, shape (*, n, n); NaN for a matrix whose norm bound exceeds radius · 2^squarings."""
        # The choice of squarings has no derivative, but the norms in it have one that is NaN at A = 0.
        norm = norm_bound(A.detach())[..., None, None]
        radii = numbers([self.radius * 2.0**k for k in range(self.squarings + 1)], A)
        if A.shape[-1] == 1:
            X = A.exp()  # the polynomial loses digits of e^{−|a|}
        else:
            # Comparisons and halves are exact where the logarithm of a runtime is not.
            again = [norm > radius for radius in radii[:-1]]
            scale = torch.ones_like(norm)
            for needed in again:
                scale = torch.where(needed, 0.5 * scale, scale)
            heads = [[numbers(row, A) for row in head] for head in self.heads]
            X = polynomial(scale * A, heads, numbers(self.readout, A))
            for needed in again:
                X = torch.where(needed, X @ X, X)
        return torch.where(norm <= radii[-1], X, torch.nan)


@dataclass(frozen=True)
class CompositionProgram:
    """Stages of a pass, the scale that they want, the number of passes, and which function."""

    function: str
    stages: tuple[tuple[float, float, float], ...]
    scale: float
    passes: int

    def __call__(self, A: Tensor) -> Tensor:
        """Sign or the square root, shape (*, n, n); NaN for a matrix whose residual is not small.

        What has not converged is caught so; an eigenvalue that has crossed the axis is not (the certificate is checked
        by the functions outside a trace).
        """
        # The function does not depend on the scale, nor does its derivative.
        B = A.detach()
        square = _norm(B @ B).sqrt()
        bound = torch.minimum(_norm(B), square)
        bound = bound.clamp_min(torch.finfo(bound.dtype).tiny).to(A.dtype)
        identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        stages = [numbers(stage, A) for stage in self.stages] * self.passes
        if self.function == "sign":
            X = A * (self.scale / bound)
            for a, b, c in stages:
                W = X @ X
                cube = X @ W
                X = a * X + b * cube + c * (W @ cube)
            return torch.where(_norm(X @ X - identity) <= LARGEST_RESIDUAL, X, torch.nan)
        factor = self.scale**2 / bound
        Y, Z = A * factor, identity.expand(A.shape)
        for a, b, c in stages:
            W = Z @ Y
            h = a * identity + b * W + c * (W @ W)
            Y, Z = Y @ h, h @ Z
        return torch.where(_norm(Z @ Y - identity) <= LARGEST_RESIDUAL, Y / factor.sqrt(), torch.nan)


def _norm(A: Tensor) -> Tensor:
    return torch.linalg.vector_norm(A, dim=(-2, -1), keepdim=True)
