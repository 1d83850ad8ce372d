"""The functions with no data-dependent control flow: what ``torch.compile``, ``torch.export`` and ONNX trace.

A program is a nested tuple of plain numbers, so that a tracer takes the whole network as a constant.  The depth is
fixed, squarings are masked, and nothing is checked but the radius: a matrix beyond it comes back NaN, never wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..domain import norm_bound
from .reference import polynomial


@dataclass(frozen=True)
class ExponentialProgram:
    """A tier and its squarings: heads ((q, v) rows), read-out, radius of the tier, number of squarings."""

    heads: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    readout: tuple[float, ...]
    radius: float
    squarings: int

    def __call__(self, A: Tensor) -> Tensor:
        """The exponential, shape (*, n, n); NaN for a matrix whose norm bound exceeds radius · 2^squarings."""
        norm = norm_bound(A)[..., None, None]
        times = torch.ceil(torch.log2((norm / self.radius).clamp_min(1.0)))
        X = polynomial(A * torch.exp2(-times).to(A.dtype), self.heads, self.readout)
        for k in range(self.squarings):
            X = torch.where(times > k, X @ X, X)
        return torch.where(norm <= self.radius * 2.0**self.squarings, X, torch.nan)


@dataclass(frozen=True)
class CompositionProgram:
    """Stages of a pass, the scale that they want, the number of passes, and which function."""

    function: str
    stages: tuple[tuple[float, float, float], ...]
    scale: float
    passes: int

    def __call__(self, A: Tensor) -> Tensor:
        """Sign or the square root, shape (*, n, n), without its certificate."""
        square = torch.linalg.vector_norm(A @ A, dim=(-2, -1), keepdim=True).sqrt()
        bound = torch.minimum(torch.linalg.vector_norm(A, dim=(-2, -1), keepdim=True), square)
        bound = bound.clamp_min(torch.finfo(bound.dtype).tiny).to(A.dtype)
        identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        stages = self.stages * self.passes
        if self.function == "sign":
            X = A * (self.scale / bound)
            for a, b, c in stages:
                W = X @ X
                cube = X @ W
                X = a * X + b * cube + c * (W @ cube)
            return X
        factor = self.scale**2 / bound
        Y, Z = A * factor, identity.expand(A.shape)
        for a, b, c in stages:
            W = Z @ Y
            h = a * identity + b * W + c * (W @ W)
            Y, Z = Y @ h, h @ Z
        return Y / factor.sqrt()
