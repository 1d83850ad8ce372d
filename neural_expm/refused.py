"""sign of the matrices whose certificate does not hold: Newton's iteration, finished by products.

Newton's map keeps both half-planes whatever the angles of the eigenvalues, and four or five steps bring nearly every
matrix so near to its sign that products take over.  A matrix answered here counts as one for the exact algorithm, and
as much is asked of it: a result that squares to I and commutes with A, and a proof, to first order, that rounding has
carried no eigenvalue over the axis.  Whatever fails any of these goes to ``exact.sign``, which looks at eigenvalues.

The derivative is that of the same maps, every scaling held.

Source: ``kernels/newton.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import exact
from .kernels import assembled, newton
from .kernels.calling import readable

# The most steps of Newton's iteration: five bring all of ``sign_general(8, 0.1, 10)`` near but one in 1000, and eight
# all of ``sign_general(8, 0.01, 100)`` but one in 2000.
STEPS = 8


def sign(A: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """Answer for the rows of A, (batch, n, n), that a network refused; returns which of them have no sign."""
    left = _attempt(A, None, rows, out)
    undefined = torch.zeros(rows.shape[0], dtype=torch.bool, device=A.device)
    if left.numel():
        out[rows[left]], undefined[left] = exact.sign(A[rows[left]])
    return undefined


def sign_frechet(A: Tensor, E: Tensor, rows: Tensor, out: Tensor) -> None:
    """As :func:`sign`, the derivative L(A, E)."""
    left = rows[_attempt(A, E, rows, out)]
    if left.numel():
        out[left] = exact.sign_frechet(A[left], E[left])


def _attempt(A: Tensor, E: Tensor | None, rows: Tensor, out: Tensor) -> Tensor:
    """Write sign(A) or L(A, E) for the rows; returns where among them that did not do."""
    kernel = assembled.find(A[: rows.shape[0]], "newton")
    if kernel is not None and (E is None or readable(E)):
        evidence = kernel.sign(A, E, STEPS, rows, out)
    else:
        S, L, evidence = newton.sign(A[rows], None if E is None else E[rows], STEPS)
        out[rows] = S if L is None else L
    return torch.nonzero(~_convincing(evidence))[:, 0]


def _convincing(evidence: newton.Evidence) -> Tensor:
    """Whether nothing speaks against a result.  NaN compares false."""
    residual, size, roundings, matrix, commutator = evidence
    trusted, eps = exact.TRUSTED_RESIDUAL[size.dtype], torch.finfo(size.dtype).eps
    good = residual <= trusted * size.square().clamp_min(1.0)
    good &= commutator <= trusted * (matrix * size)
    good &= roundings * eps * size.square() <= exact.HARMLESS
    return good & torch.isfinite(matrix * size)  # beside an infinity everything is small
