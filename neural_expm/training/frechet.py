"""Exact adjoint Fréchet derivatives in float64: what the gradient of a surrogate is measured against.

For A = V·diag(λ)·V⁻¹ the Daleckiĭ–Kreĭn theorem (Higham 2008, theorem 3.11) gives
L(A, E) = V·(f[λᵢ, λⱼ] ∘ V⁻¹EV)·V⁻¹ with divided differences f[λᵢ, λⱼ]; the gradient of ⟨W, f(A)⟩ is L(Aᵀ, W).
"""

from __future__ import annotations

import torch
from torch import Tensor

from neural_expm.errors import TrainingError


def adjoint_frechet(function: str, matrices: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of Σ W ∘ f(A) by A, for real (B, n, n) float64 A and W.

    The exponential differentiates ``torch.linalg.matrix_exp``; sign and square root use the theorem above, so
    A must be diagonalisable (the named distributions are, with well-conditioned bases).
    """
    if function == "expm":
        leaf = matrices.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(torch.linalg.matrix_exp(leaf), leaf, weights)
        return gradient
    eigenvalues, vectors = torch.linalg.eig(matrices.mT)
    rows, columns = eigenvalues[..., :, None], eigenvalues[..., None, :]
    if function == "sqrtm":
        differences = 1 / (rows.sqrt() + columns.sqrt())
    elif function == "sign":
        opposite = rows.real.sign() != columns.real.sign()
        gap = torch.where(opposite, rows - columns, torch.ones_like(rows - columns))
        differences = (rows.real.sign() - columns.real.sign()) / gap
    else:
        raise TrainingError(f"no Fréchet derivative for {function!r}; use expm, sign or sqrtm")
    inner = torch.linalg.solve(vectors, weights.to(vectors.dtype) @ vectors)
    return (vectors @ torch.linalg.solve(vectors, differences * inner, left=False)).real
