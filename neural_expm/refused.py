"""sign of the matrices whose certificate does not hold: a few steps of Newton's iteration, until it does.

Newton's map N(X) = ½(μX + (μX)⁻¹) keeps both half-planes, so sign(N(A)) = sign(A), and it draws eigenvalues towards the
real axis, into the sector that the stages of the network serve: two steps instead of the nine or so that Newton needs
to the end, and the rest in matrix products, which cost a small fraction of an inverse.  A matrix answered here counts
as one for the exact algorithm, and more is asked of it than there: the certificate of N(A), with eigenvalues far from
the axis (one pass); a well-conditioned inverse without cancellation in N, so that rounding cannot have carried an
eigenvalue over; and a result that commutes with A.  Whatever fails any of these goes to ``exact.sign``.

The derivative is that of the same map at fixed μ, then of the network: L(A, E) = L(N(A), ½(μE − μ⁻¹A⁻¹EA⁻¹)).

Source: Higham, *Functions of Matrices*, sections 5.3 and 5.5 (scaling, and finishing Newton's iteration by products).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import exact
from .domain import Reason
from .kernels import assembled

# Newton steps before the network: two bring nearly all matrices into its sector, three all but odd ones.
STEPS = 3
# Largest ‖X‖‖X⁻¹‖ of a matrix that is inverted here, in units of 1/√eps, and the most that the two terms of N may
# cancel: what rounding does to N stays below about √eps, and the eigenvalues of an accepted N lie far beyond that.
CONDITION, CANCELLATION = 0.01, 1e-2


def sign(network: Any, A: Tensor) -> tuple[Tensor, Tensor]:
    """What ``exact.sign`` returns, for the (batch, n, n) matrices that ``network.run`` refused."""
    result, left = _attempt(network, A, None)
    undefined = torch.zeros(A.shape[0], dtype=torch.bool, device=A.device)
    if left.numel():
        result[left], undefined[left] = exact.sign(A[left])
    return result, undefined


def sign_frechet(network: Any, A: Tensor, E: Tensor) -> Tensor:
    """What ``exact.sign_frechet`` returns, for the same matrices."""
    result, left = _attempt(network, A, E)
    if left.numel():
        result[left] = exact.sign_frechet(A[left], E[left])
    return result


def _attempt(network: Any, A: Tensor, E: Tensor | None) -> tuple[Tensor, Tensor]:
    """sign(A), or L(A, E), and the rows that are still to be computed."""
    sane = torch.ones(A.shape[0], dtype=torch.bool, device=A.device)
    X, D = A, E
    for _ in range(STEPS):
        X, D, harmless = _newton(X, D)
        sane &= harmless
    result, outcome = network.run(X)
    good = sane & (outcome.computed() == 1) & _commutes(A, result)
    if D is not None:
        outcome.reason = torch.where(good, int(Reason.INSIDE), int(Reason.NO_CERTIFICATE)).to(torch.uint8)
        result = network.run_frechet(X, D, outcome)
    return result, torch.nonzero(~good)[:, 0]


def _newton(X: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """N(X), the derivative of N in direction D, and which matrices took no harm."""
    inverse = _inverse(X)
    size, inverse_size = exact._norm(X), exact._norm(inverse)
    mu = (inverse_size / size).sqrt()
    column = mu[:, None, None].to(X.dtype)
    if D is not None:
        D = 0.5 * (column * D - (inverse / column) @ D @ inverse)
    # In place: fresh memory for the terms would take longer than they do.
    step = inverse.mul_(0.5 / column).addcmul_(X, 0.5 * column)
    condition = size * inverse_size
    limit = CONDITION / torch.finfo(size.dtype).eps ** 0.5
    # Both terms of N have the norm √condition.  NaN compares false.
    harmless = (condition <= limit) & (exact._norm(step) >= CANCELLATION * condition.sqrt())
    return step, D, harmless


def _inverse(X: Tensor) -> Tensor:
    """X⁻¹, by LAPACK where no kernel of ours takes many small matrices at a time; not finite where there is none."""
    kernel = assembled.find(X, "inverse")
    return torch.linalg.inv_ex(X)[0] if kernel is None else kernel.value(X)


def _commutes(A: Tensor, S: Tensor) -> Tensor:
    """As ``exact.sign`` asks of its own results."""
    size = (exact._norm(A) * exact._norm(S)).clamp_min(torch.finfo(A.dtype).tiny)
    return exact._norm((A @ S).baddbmm_(S, A, alpha=-1)) / size <= exact.TRUSTED_RESIDUAL[A.dtype.to_real()]
