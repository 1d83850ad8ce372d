"""Plain torch, any device, any differentiation: defines what is right.  Every faster kernel is compared with these."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _combine(weights: Tensor | Sequence[float], tokens: Sequence[Tensor]) -> Tensor:
    total = weights[0] * tokens[0]
    for weight, token in zip(weights[1:], tokens[1:], strict=True):
        total = total + weight * token
    return total


def polynomial(
    A: Tensor, heads: Sequence[Tensor | Sequence[Sequence[float]]], readout: Tensor | Sequence[float]
) -> Tensor:
    """The equivariant transformer's polynomial.

    Args:
        A: shape (*, n, n).
        heads: m of shape (2, h), h = 1 … m, tensors or numbers: scores and values over A, X₂ … X_h.
        readout: m + 2 numbers, over I, A, X₂ … X_{m+1}.

    Returns:
        Shape (*, n, n).
    """
    tokens = [A]
    for head in heads:
        tokens.append(_combine(head[0], tokens) @ _combine(head[1], tokens))
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return _combine(readout[1:], tokens) + readout[0] * identity


def square(X: Tensor, times: int) -> Tensor:
    """X^(2^times), shape (*, n, n)."""
    for _ in range(times):
        X = X @ X
    return X


def exponential(A: Tensor, heads: Sequence[Tensor], readout: Tensor, squarings: int) -> Tensor:
    """p(A/2^s)^(2^s): scaling, network, squaring (Higham, *Functions of Matrices*, algorithm 10.20)."""
    return square(polynomial(A * 2.0**-squarings, heads, readout), squarings)


def block_triangular(A: Tensor, E: Tensor, B: Tensor) -> Tensor:
    """[[A, E], [0, B]], shape (*, 2n, 2n): f of it with B = A holds L(A, E) in its upper right block (Mathias 1996)."""
    return torch.cat([torch.cat([A, E], -1), torch.cat([torch.zeros_like(A), B], -1)], -2)


def tangent(S: Tensor, E: Tensor) -> Tensor:
    """½(E − S E S), what of E changes a sign S: S L + L S = 0 for every derivative L, since S² = I."""
    return 0.5 * (E - S @ E @ S)


def balance(A: Tensor, E: Tensor) -> Tensor:
    """A power of two for each matrix, shape (*, 1, 1), that brings E to the size of A; 1 where there is none.

    L(A, E) is linear in E, and in the block triangular matrix of both the larger one would drown the smaller.
    """
    if not A.numel():
        return A.detach().real.new_ones(())
    size, other = (X.detach().abs().amax((-2, -1), keepdim=True) for X in (A, E))
    ratio = torch.where(size > 0, size, 1.0) / other
    usable = torch.isfinite(ratio) & (ratio > 0)
    most = math.frexp(torch.finfo(ratio.dtype).max)[1] - 2
    return torch.exp2(torch.log2(torch.where(usable, ratio, 1.0)).floor().clamp(-most, most))


def adjoint_of_frechet(
    A: Tensor, E: Tensor, H: Tensor, frechet: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The gradients of ⟨H, L(A, E)⟩ with respect to A and to E.

    L(A, E) is the upper right block of f(M), so its adjoint is that of f at M for a cotangent in that block.
    """
    n, zero = A.shape[-1], torch.zeros_like(H)
    factor = balance(A, E)
    M = block_triangular(A, E * factor, A)
    gradient = frechet(M.mH, block_triangular(zero, H, zero))
    return (gradient[..., :n, :n] + gradient[..., n:, n:]) / factor, gradient[..., :n, n:]
