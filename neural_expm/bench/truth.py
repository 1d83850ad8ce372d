"""The truth that errors are measured against: a precision above that of the work, by textbook algorithms.

Single-precision work is judged in float64.  Double-precision work is judged in extended precision (64-bit significand,
NumPy's ``longdouble`` on x86), whose roundings are 2000 times smaller; ``tests/test_bench.py`` checks it against mpmath
at 50 digits.  Where ``longdouble`` is no wider than double, mpmath itself is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
EXTENDED = bool(np.finfo(np.longdouble).eps < 1e-18)
DIGITS = 50
# Work, in multiply-adds, that a truth may cost: seconds.
EXTENDED_WORK, MPMATH_WORK = 1e8, 4e4


def sample(A: Tensor, gradient: bool) -> Tensor:
    """Indices of the matrices of a batch (batch, n, n) that are checked: all, or as many as are affordable."""
    count, n = A.shape[0], A.shape[-1] * (2 if gradient else 1)
    if A.dtype in (torch.float32, torch.complex64):
        return torch.arange(count)
    work = (EXTENDED_WORK if EXTENDED else MPMATH_WORK) / (30 * n**3)
    few = max(1, min(count, int(work)))
    return torch.arange(few) * count // few


def value(function: str, A: Tensor) -> Array:
    """f(A) for float32, complex64, float64 or complex128 matrices (batch, n, n), beyond their own precision."""
    if A.dtype in (torch.float32, torch.complex64):
        wide = A.to(torch.complex128 if A.is_complex() else torch.float64).resolve_conj()
        return torch.linalg.matrix_exp(wide).numpy() if function == "expm" else EXACT[function](wide.numpy())
    if not EXTENDED:
        return np.stack([mpmath_value(function, a) for a in A.resolve_conj().numpy()])
    return EXACT[function](
        A.resolve_conj().numpy().astype(np.clongdouble if A.is_complex() else np.longdouble)
    )


def gradient(function: str, A: Tensor, G: Tensor) -> Array:
    """L(Aᴴ, G), the gradient of Re⟨G, f(A)⟩: a block of f([[Aᴴ, G], [0, Aᴴ]]) (Mathias 1996)."""
    n = A.shape[-1]
    # L is linear in G: scale it to A, or the block would be as badly scaled as their ratio.
    size = torch.linalg.matrix_norm(G) / torch.linalg.matrix_norm(A).clamp_min(1e-30)
    size = torch.exp2(size.log2().round())[:, None, None]
    top = torch.cat([A.mH, G / size], -1)
    block = torch.cat([top, torch.cat([torch.zeros_like(A), A.mH], -1)], -2)
    return value(function, block)[:, :n, n:] * size.numpy()


# --- algorithms, in whatever precision they are given -----------------------------------------------------------------


def expm(A: Array) -> Array:
    """Scaling, Taylor of degree 24, squaring: 1/25! < 1e-25 (Higham, *Functions of Matrices*, section 10.3)."""
    norm = np.abs(A).sum(-1).max(-1)
    squarings = np.maximum(0, np.ceil(np.log2(np.maximum(norm, 1e-300)))).astype(int)
    X = A * np.exp2(-squarings)[:, None, None].astype(A.real.dtype)
    total = term = np.broadcast_to(np.eye(A.shape[-1], dtype=A.dtype), A.shape)
    for k in range(1, 25):
        term = term @ X / k
        total = total + term
    for k in range(squarings.max(initial=0)):
        total = np.where((squarings > k)[:, None, None], total @ total, total)
    return total


def sign(A: Array) -> Array:
    """Newton's iteration, scaled while far from convergence (Higham, *Functions of Matrices*, (5.34) and (5.35))."""
    X = A
    for k in range(60):
        inverse = _inverse(X)
        scale = np.sqrt(_norm(inverse) / _norm(X)) if k < 12 else 1.0
        following = (X * scale + inverse / scale) / 2
        change = (_norm(following - X) / _norm(following)).max(initial=0)
        X = following
        if k > 12 and change < 4 * X.shape[-1] * np.finfo(X.real.dtype).eps:
            break
    return X


def sqrtm(A: Array) -> Array:
    """Denman–Beavers: Y → A^{1/2}, Z → A^{−1/2} (Higham, *Functions of Matrices*, (6.15))."""
    size = _norm(A)
    Y, Z = A / size, np.broadcast_to(np.eye(A.shape[-1], dtype=A.dtype), A.shape)
    for _ in range(60):
        following, Z = (Y + _inverse(Z)) / 2, (Z + _inverse(Y)) / 2
        change = (_norm(following - Y) / _norm(following)).max(initial=0)
        Y = following
        if change < 4 * Y.shape[-1] * np.finfo(Y.real.dtype).eps:
            break
    return Y * np.sqrt(size)


EXACT: dict[str, Callable[[Array], Array]] = {"expm": expm, "sign": sign, "sqrtm": sqrtm}


def mpmath_value(function: str, A: Array) -> Array:
    """One matrix at 50 digits, rounded to longdouble; ``mpmath`` is in the ``train`` and ``test`` extras."""
    import mpmath

    with mpmath.workdps(DIGITS):
        M = mpmath.matrix(A.tolist())
        if function == "expm":
            result = mpmath.expm(M)
        elif function == "sqrtm":
            result = mpmath.sqrtm(M)
        else:
            result = M
            for _ in range(100):
                following = (result + mpmath.inverse(result)) / 2
                change = mpmath.mnorm(following - result, "f")
                result = following
                if change < mpmath.mpf(10) ** (-DIGITS // 2 - 2):
                    break
        wide = np.clongdouble if np.iscomplexobj(A) else np.longdouble
        return np.array([[_wide(x, wide) for x in row] for row in result.tolist()], dtype=wide)


def _wide(x: Any, dtype: Any) -> Any:
    import mpmath

    real, imaginary = (np.longdouble(mpmath.nstr(part(x), 25)) for part in (mpmath.re, mpmath.im))
    return dtype(real + 1j * imaginary) if dtype is np.clongdouble else real


def _norm(X: Array) -> Array:
    return np.sqrt((np.abs(X) ** 2).sum((-2, -1), keepdims=True))


def _inverse(X: Array) -> Array:
    """LAPACK's inverse in double, refined twice in the precision of X: V ← V(2I − XV), quadratic (Schulz 1933)."""
    double = np.complex128 if np.iscomplexobj(X) else np.float64
    V = np.linalg.inv(X.astype(double)).astype(X.dtype)
    two = 2 * np.eye(X.shape[-1], dtype=X.dtype)
    for _ in range(2):
        V = V @ (two - X @ V)
    return V
