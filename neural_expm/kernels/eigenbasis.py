"""The eigenbasis of a matrix, where it is a good one: of matrices that a diagonal similarity makes symmetric.

Such are symmetric matrices, graph Laplacians and the generators of reversible Markov chains, of which the square roots
of the stationary distribution are the diagonal (Kelly 1979, *Reversibility and Stochastic Networks*).  Of Q = DSD⁻¹
with S = VΛVᵀ the eigenbasis is DV, and its condition no worse than that of D.

What LAPACK leaves of the orthogonality of V, some n units of rounding, would be most of the error of a function
computed in the basis.  One step of refinement with residuals to twice the precision takes it away.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

MOST_CONDITION = 64.0  # of D
ASYMMETRY = 32.0  # of D⁻¹QD entry by entry, in units of rounding of Q
# Added to a number below one and taken away again it leaves 24 binary digits: a product of two such is exact.
LEADING = 1.5 * 2.0**28
ROUNDING = {np.dtype(kind): float(np.finfo(kind).eps) for kind in (np.float32, np.float64)}
ALONE_N = 20  # up to which NumPy uses one thread
STEP = 2.0**-27  # the largest whose square is below rounding
# Times the norm: a distance of eigenvalues to which residuals, which are right to some 2^−80, have no digit to say.
NEAR = 2.0**-26


class Eigenbasis(NamedTuple):
    """Q = right · diag(values) · left, right · left = I; double precision; and ‖Q‖_F."""

    values: np.ndarray
    left: np.ndarray
    right: np.ndarray
    norm: float


def eigenbasis(Q: np.ndarray) -> Eigenbasis | None:
    """Of a real matrix, in single or double precision; None where none is known to be well conditioned."""
    rounding = ROUNDING[Q.dtype]
    Q = Q.astype(np.float64)
    norm = float(Q.reshape(-1) @ Q.reshape(-1)) ** 0.5
    if not norm < math.inf:  # or NaN
        return None
    d = symmetrizing(Q)
    if d is None:
        return None
    each = d.tolist()
    if max(each) > MOST_CONDITION * min(each):
        return None
    S = Q * d / d[:, None]
    half = S / 2
    S = half + half.T
    if (np.abs(half - half.T) > ASYMMETRY * rounding * np.abs(S)).any():
        return None
    values, V = refined(S, *_eigh(S))
    # Products of such are subnormal numbers in single precision, which take a hundred times as long.
    V[np.abs(V) < rounding**2] = 0.0
    return Eigenbasis(values, V.T / d, d[:, None] * V, norm)


def symmetrizing(Q: np.ndarray) -> np.ndarray | None:
    """The d > 0 for which D⁻¹QD is symmetric if it is for any, D = diag(d); None where it is for none."""
    if Q[0].all():  # all of them neighbours of the first one
        d = Q[:, 0] / Q[0]
        return np.sqrt(d) if min(d.tolist()) > 0 else None
    d = np.zeros(len(Q))
    waiting: list[int] = []
    # Along the edges of the graph that has the entries for edges, one part of it after another.
    while not d.all():
        if not waiting:
            waiting = [int(d.argmin())]
            d[waiting] = 1.0
        i = waiting.pop()
        (new,) = np.nonzero((Q[i] != 0) & (d == 0))
        ratio = Q[new, i] / Q[i, new]
        if (ratio <= 0).any():
            return None
        d[new] = d[i] * np.sqrt(ratio)
        waiting.extend(new.tolist())
    return d


def refined(S: np.ndarray, values: np.ndarray, V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One step of refinement of the eigenvalues and eigenvectors of a symmetric S.

    Source: Ogita & Aishima (2018), Japan J. Indust. Appl. Math. 35, algorithm 1, except that eigenvectors of
    eigenvalues so near to each other that a step would be a long one are made orthogonal, no more.  The residuals are
    sums of products whose factors are split into a leading part, of which they are exact, and a small rest (Ozaki et
    al. 2012, Numer. Algorithms 59).
    """
    # Few kinds of NumPy's operations: between other work each new one takes as long as all products here.
    n, scale = len(S), math.ldexp(1.0, math.frexp(max(-values[0], values[-1]))[1])  # not below any entry
    unit, split = scale * LEADING, np.empty((n, 2, n))
    S0, values0 = (S + unit) - unit, (values + unit) - unit
    split[:, 0] = (V + LEADING) - LEADING
    split[:, 1] = V - split[:, 0]
    both = split.reshape(n, 2 * n)
    gram = _product(both.T, both)
    R = -gram[:n, :n]
    R.flat[:: n + 1] += 1.0
    R -= gram[:n, n:] + gram[n:, :n]
    R -= gram[n:, n:]
    # SV − V diag(values0), and VᵀSV − VᵀV diag(values0).
    parts = _product(S0, both).reshape(n, 2, n) - split * values0
    residual = _product(V.T, parts[:, 0] + (parts[:, 1] + _product(S - S0, V)))
    values = values0 + residual.diagonal()
    gap = values - values[:, None]
    size = np.abs(gap)
    long = np.abs(residual) >= STEP * size
    long |= long.T | (size < NEAR * scale)
    long.flat[:: n + 1] = True
    gap[long] = 1.0
    step = residual / gap
    step[long] = R[long] / 2
    return values, V + _product(V, step)


def _product(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    # The threads that NumPy has for larger matrices would wait for a processor that those of torch do not leave.
    return A @ B if len(A) <= ALONE_N else (torch.from_numpy(A) @ torch.from_numpy(B)).numpy()


def _eigh(S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(S) <= ALONE_N:
        return np.linalg.eigh(S)
    values, V = torch.linalg.eigh(torch.from_numpy(S))
    return values.numpy(), V.numpy()
