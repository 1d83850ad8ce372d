"""One matrix: the same polynomials as ``eager`` with as few torch calls as can be, because a call costs more than a
small product.

A value and its derivative lie side by side as (n, 2n), [X | dX], so that Q [V | dV] is one product.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _flat(X: Tensor) -> Tensor:
    """The tokens as rows of a real matrix, without a copy."""
    return (torch.view_as_real(X) if X.is_complex() else X).view(X.shape[0], -1)


def exponential(
    A: Tensor,
    weights: list[Tensor],
    identity: float,
    squarings: int,
    out: Tensor,
    square: Tensor | None = None,
) -> None:
    """Out ← p(A/2^s)^(2^s).

    Args:
        A, out: shape (n, n), same dtype and device.
        weights, identity, squarings: as in ``eager.exponential``.
        square: A², where it is already known.
    """
    n = A.shape[0]
    stream, pair = A.new_empty(len(weights) + 1, n, n), A.new_empty(2, n, n)
    tokens, (scores, values) = stream.unbind(), pair.unbind()
    flat, pair_flat = _flat(stream), _flat(pair)
    if squarings:
        torch.mul(A, 2.0**-squarings, out=tokens[0])
    else:
        tokens[0].copy_(A)
    if square is None:
        torch.mm(tokens[0], tokens[0], out=tokens[1])
    else:
        torch.mul(square, 4.0**-squarings, out=tokens[1])
    for h, head in enumerate(weights[:-1], start=2):
        torch.mm(head, flat.narrow(0, 0, h), out=pair_flat)
        torch.mm(scores, values, out=tokens[h])
    X, spare = (out, scores) if squarings % 2 == 0 and out.is_contiguous() else (scores, out)
    torch.mm(weights[-1], flat, out=_flat(X[None]))
    X.diagonal().add_(identity)
    for _ in range(squarings):
        torch.mm(X, X, out=spare)
        X, spare = spare, X
    if X is not out:
        out.copy_(X)


def exponential_frechet(
    A: Tensor, E: Tensor, weights: list[Tensor], identity: float, squarings: int, out: Tensor
) -> None:
    """Out ← L(A, E), the Fréchet derivative of :func:`exponential` in direction E.

    Args:
        A, E, out: shape (n, n), same dtype and device.
        weights, identity, squarings: as in ``eager.exponential_frechet``.
    """
    n = A.shape[0]
    stream, pair = A.new_empty(len(weights) + 1, n, 2 * n), A.new_empty(2, n, 2 * n)
    tokens, (scores, values) = stream.unbind(), pair.unbind()
    slopes = stream[:, :, n:].unbind()
    score, score_slope = scores.split(n, 1)
    value = values[:, :n]
    flat, pair_flat = _flat(stream), _flat(pair)
    torch.mul(A, 2.0**-squarings, out=tokens[0][:, :n])
    torch.mul(E, 2.0**-squarings, out=slopes[0])
    first = tokens[0][:, :n]
    torch.mm(first, tokens[0], out=tokens[1])
    slopes[1].addmm_(slopes[0], first)
    for h, head in enumerate(weights[:-1], start=2):
        torch.mm(head, flat.narrow(0, 0, h), out=pair_flat)
        torch.mm(score, values, out=tokens[h])
        slopes[h].addmm_(score_slope, value)
    torch.mm(weights[-1], flat, out=pair_flat.narrow(0, 0, 1))
    score.diagonal().add_(identity)
    now, spare = scores, values
    for _ in range(squarings):
        torch.mm(now[:, :n], now, out=spare)
        spare[:, n:].addmm_(now[:, n:], now[:, :n])
        now, spare = spare, now
    out.copy_(now[:, n:])
