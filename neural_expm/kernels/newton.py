"""The matrix sign by Newton's iteration, finished by products, and what the result is to be judged by.

A step is N(X) = ½(μX + (μX)⁻¹) with μ² = ‖X⁻¹‖/‖X‖; from ‖X² − I‖ ≤ θ on the Padé iteration [2/0] takes over,
X ← X(15I − 10X² + 3X⁴)/8, which cubes that distance in three products.  Both keep the half-planes in which the
eigenvalues lie, if it were not for rounding.  What rounding may have done to X, relative to ‖X‖ and to first order, is
followed from step to step: N multiplies it by at most g(1 + c)/2 and adds gc roundings of its own, where c = ‖X‖‖X⁻¹‖,
and g = √c/‖N(X)‖ ≥ 1 says how far its two terms, both of the norm ½√c, cancel.

Source: Higham, *Functions of Matrices*, (5.34), (5.37), table 5.1, theorem 5.8 and section 5.5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..domain import frobenius_norm
from . import reference
from .chunks import chunks, put, take
from .composition import Algebra, sign_stage, tangent
from .layout import layout_for

EARLY = 3  # steps that are taken before a look at the distance: fewer are hardly ever enough
NEAR = 0.25  # θ: FINISHING Padé iterations bring it below a rounding in double
FINISHING, PADE = 3, (15 / 8, -10 / 8, 3 / 8)


class Evidence(NamedTuple):
    """Of each matrix A and its sign S.

    Attributes:
        residual: ‖S² − I‖.
        size: ‖S‖.
        roundings: the most that rounding has done to the last X of Newton's, in units of eps · ‖X‖.
        matrix: ‖A‖.
        commutator: ‖AS − SA‖.
    """

    residual: Tensor
    size: Tensor
    roundings: Tensor
    matrix: Tensor
    commutator: Tensor


def sign(A: Tensor, E: Tensor | None, steps: int) -> tuple[Tensor, Tensor | None, Evidence]:
    """The sign, its Fréchet derivative in direction E with every μ held, and the evidence; not finite where A⁻¹ is not.

    Args:
        A: shape (batch, n, n).
        E: likewise; None for no derivative.
        steps: of Newton's, the most that are taken, at least EARLY.
    """
    A = A.resolve_conj()
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    S, _, roundings = _iterate(A, None, steps)
    commutator = frobenius_norm((A @ S).baddbmm_(S, A, alpha=-1))
    evidence = Evidence(
        frobenius_norm(S @ S - eye), frobenius_norm(S), roundings, frobenius_norm(A), commutator
    )
    if E is None:
        return S, None, evidence
    # What makes no difference to the sign would grow on the way by one over the distance of eigenvalues from the axis,
    # and its rounding with it.
    return *_iterate(A, reference.tangent(S, E), steps)[:2], evidence


def _iterate(A: Tensor, E: Tensor | None, steps: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """The sign, its derivative in direction E, and the roundings."""
    X = A.clone(memory_format=torch.contiguous_format)
    D = None if E is None else E.clone(memory_format=torch.contiguous_format)
    roundings = torch.zeros(A.shape[0], dtype=A.dtype.to_real(), device=A.device)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    far = torch.arange(A.shape[0], device=A.device)  # each matrix stops for itself
    for step in range(1, steps + 1):
        if not far.numel():
            break
        now = X[far]
        inverse = torch.linalg.inv_ex(now)[0]
        size, inverse_size = frobenius_norm(now), frobenius_norm(inverse)
        c, mu = size * inverse_size, (inverse_size / size).sqrt()[:, None, None].to(X.dtype)
        if D is not None:
            D[far] = 0.5 * (mu * D[far] - (inverse / mu) @ D[far] @ inverse)
        # In place: fresh memory for the terms would take longer than they do.
        X[far] = following = inverse.mul_(0.5 / mu).addcmul_(now, 0.5 * mu)
        cancellation = c.sqrt() / frobenius_norm(following)
        roundings[far] = (0.5 * (1 + c) * roundings[far] + c) * cancellation
        if step >= EARLY:
            far = far[frobenius_norm(following @ following - eye) > NEAR]
    return *_finished(X, D), roundings


def _finished(X: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """X and D after the Padé iterations, in their memory."""
    members = [X] if D is None else [X, D]
    algebra = Algebra(layout_for(X.shape[-1], X.shape[0]), dual=D is not None)
    for at, count in chunks(X, None):
        state = algebra.layout.empty((2,) if algebra.dual else (), count, X)
        for member, place in zip(members, state if algebra.dual else [state], strict=True):
            algebra.layout.load(take(member, at), place, 1.0)
        for _ in range(FINISHING):
            W = algebra.multiply(state, state)
            state = sign_stage(algebra, state, W, algebra.multiply(W, W), PADE)
        if algebra.dual:
            tangent(algebra, state)
        for member, place in zip(members, state if algebra.dual else [state], strict=True):
            put(member, at, algebra.layout.matrices(place))
        algebra.release(state)
    return X, D
