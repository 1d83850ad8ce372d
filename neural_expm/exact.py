"""The exact algorithms: where every matrix goes that no network answers for.

Each function takes a batch (batch, n, n) in float32, float64, complex64 or complex128 and returns the value with a mask
of the matrices where the function does not exist; ``frechet`` returns the Fréchet derivative.  They are made
differentiable, to every order, by ``differentiation.py``.  Batched torch does the common case; SciPy's Schur
decomposition rescues the matrices where an iteration cannot go (defective, badly scaled).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import overload

import numpy as np
import torch
from torch import Tensor

from .domain import is_finite, is_hermitian, largest_part
from .kernels.reference import balance, block_triangular, tangent

MAX_ITERATIONS = 60
# Newton's relative residual beyond which a result is not trusted and goes to the Schur form: a few hundred roundings.
TRUSTED_RESIDUAL = {torch.float32: 1e-4, torch.float64: 1e-12}
# Largest ‖ΔX‖‖X‖ near a sign X of which no harm is feared.  The resolvent on the axis is below 1.3 ‖X‖ there: no
# eigenvalue has crossed it while this is below ¾; a hundredth is allowed where ΔX is known to first order.
HARMLESS = 0.01
# What a Schur decomposition may be off by, in units of n · eps · ‖A‖.
ROUNDING = 10.0
# An eigenvalue this close to the forbidden line, relative to ‖A‖_F, is on it to working precision.
ON_THE_LINE = {torch.float32: 1e-6, torch.float64: 1e-14}


def _real(dtype: torch.dtype) -> torch.dtype:
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)


def _norm(X: Tensor) -> Tensor:
    return torch.linalg.vector_norm(X, dim=(-2, -1))


def _column(x: Tensor, like: Tensor) -> Tensor:
    return x[:, None, None].to(like.dtype)


# --- exp --------------------------------------------------------------------------------------------------------------


def expm(A: Tensor) -> tuple[Tensor, Tensor]:
    """The exponential by ``torch.linalg.matrix_exp``; NaN where A is not finite, unless it is a scalar.

    Source: Bader, Blanes, Casas (2019), Mathematics 7(12).
    """
    if A.shape[-1] == 1:
        return A.exp(), torch.zeros(A.shape[0], dtype=torch.bool, device=A.device)
    A = A.contiguous()
    finite = is_finite(A)
    # matrix_exp sorts matrices by norm and leaves those with a NaN norm unset.
    result = torch.linalg.matrix_exp(torch.where(finite[:, None, None], A, 0.0))
    return torch.where(finite[:, None, None], result, torch.nan), torch.zeros_like(finite)


def expm_frechet(A: Tensor, E: Tensor) -> Tensor:
    """L(A, E) as the upper right block of exp([[A, E], [0, A]]) (Mathias 1996, SIAM J. Matrix Anal. Appl. 17(3))."""
    n, factor = A.shape[-1], balance(A, E)
    if n == 1:
        return expm(A)[0] * E
    return expm(block_triangular(A, E * factor, A))[0][:, :n, n:] / factor


# --- sign -------------------------------------------------------------------------------------------------------------


def sign(A: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix sign by Newton's iteration with norm scaling; Schur–Parlett where it does not converge.

    Source: Higham, *Functions of Matrices*, (5.16) with scaling (5.37); algorithm 5.5.
    """
    A, _ = _normalized(A)
    X, good, doubtful = sign_by_newton(A)
    # Rounding may have carried an eigenvalue over the axis; if so, N = A·S says whether any was.
    rows = torch.nonzero(good & doubtful)[:, 0]
    if rows.numel():
        N = A[rows] @ X[rows]
        good[rows] = torch.linalg.eigvals(N).real.amin(-1) > ON_THE_LINE[_real(A.dtype)] * _norm(N)
    return _rescue(A, X, good, _sign_schur)


def sign_by_newton(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What Newton's iteration ends at, whether that is an involution that commutes, and whether it may be another one.

    Alone it is what the benchmark compares with.
    """
    X, inverse, roundings, _ = _newton(A)
    real, size = _real(A.dtype), _norm(X)
    residual = _norm(X @ X - _eye(X)) / size.square().clamp_min(1.0)
    commutes = _norm(A @ X - X @ A) / (_norm(A) * size).clamp_min(torch.finfo(real).tiny)
    good = torch.maximum(residual, commutes) <= TRUSTED_RESIDUAL[real]
    good &= _norm(A) * _norm(inverse) <= 0.01 / torch.finfo(real).eps
    return X, good, ~(roundings * torch.finfo(real).eps * size <= HARMLESS)


def _eye(X: Tensor) -> Tensor:
    return torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)


@overload
def _newton(A: Tensor) -> tuple[Tensor, Tensor, Tensor, None]: ...
@overload
def _newton(A: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def _newton(A: Tensor, C: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """X ← ½(μX + (μX)⁻¹) and, beside it, C ← ½(μC + μ⁻¹ X⁻¹CX⁻¹); also A⁻¹ from the first step.

    Third comes how many roundings, in ‖·‖₂ and to first order, those of the steps far from the sign amount to at most:
    a step multiplies what there is by at most ½(μ + ‖X⁻¹‖²/μ).  Each matrix stops for itself, so that no result depends
    on its neighbours in the batch.
    """
    X, first = A.clone(), A.clone()
    C = None if C is None else C.clone()
    active = torch.arange(A.shape[0], device=A.device)
    tolerance = A.shape[-1] * torch.finfo(_real(A.dtype)).eps
    scaling = torch.ones(A.shape[0], dtype=torch.bool, device=A.device)
    roundings = torch.zeros(A.shape[0], dtype=_real(A.dtype), device=A.device)
    for iteration in range(MAX_ITERATIONS):
        if not active.numel():
            break
        now = X[active]
        inverse, _ = torch.linalg.inv_ex(now)
        if iteration == 0:
            first = inverse
        modulus, inverse_modulus = now.abs(), inverse.abs()
        # Squares of upper bounds of ‖X‖₂ and ‖X⁻¹‖₂.
        square = modulus.sum(-1).amax(-1) * modulus.sum(-2).amax(-1)
        inverse_square = inverse_modulus.sum(-1).amax(-1) * inverse_modulus.sum(-2).amax(-1)
        far = scaling[active]
        mu = torch.where(far, (inverse_square / square).pow(0.25), 1.0)
        mu = torch.where(torch.isfinite(mu) & (mu > 0), mu, 1.0)
        size, inverse_size = mu * square.sqrt(), inverse_square.sqrt() / mu
        before = roundings[active]
        grown = mu * (1 + inverse_size**2) * before + size + (1 + size * inverse_size) * inverse_size
        roundings[active] = torch.where(far, 0.5 * grown, before)
        after = 0.5 * (_column(mu, now) * now + inverse / _column(mu, now))
        X[active] = after
        if C is not None:
            C[active] = 0.5 * (
                _column(mu, now) * C[active] + inverse @ C[active] @ inverse / _column(mu, now)
            )
        change = _norm(after - now) / _norm(after)
        # Scaling stops paying once the iteration is in its quadratic phase (Higham, section 5.8).
        scaling[active] &= change > 1e-2
        # Quadratic: a change of √tolerance now is one of about tolerance after one more step.
        finished = ~(change > tolerance) | ~torch.isfinite(change)
        active = active[~finished]
    return X, first, roundings, C


def _sign_triangular(T: np.ndarray) -> np.ndarray:
    """Sign of an upper triangular matrix (Higham, algorithm 5.5)."""
    n = T.shape[0]
    U = np.diag(np.where(np.diag(T).real > 0, 1.0, -1.0)).astype(T.dtype)
    for j in range(1, n):
        for i in range(j - 1, -1, -1):
            inner = slice(i + 1, j)
            if U[i, i] == U[j, j]:
                U[i, j] = -(U[i, inner] @ U[inner, j]) / (U[i, i] + U[j, j])
            else:
                mixed = U[i, inner] @ T[inner, j] - T[i, inner] @ U[inner, j]
                U[i, j] = (T[i, j] * (U[i, i] - U[j, j]) + mixed) / (T[i, i] - T[j, j])
    return U


def _sign_schur(A: np.ndarray, tolerance: float) -> np.ndarray | None:
    import scipy.linalg  # here and below: most programs never need a rescue, and the import is slow

    # Of a badly scaled matrix the small entries would drown in the rounding of the Schur form.
    B, D = scipy.linalg.matrix_balance(A.astype(np.complex128))
    T, Z = scipy.linalg.schur(B, output="complex")
    if np.any(np.abs(np.diag(T).real) <= tolerance * max(np.linalg.norm(T), np.finfo(float).tiny)):
        return None
    S = Z @ _sign_triangular(T) @ Z.conj().T
    # Eigenvalues far from the axis may have been carried over it: of a matrix near another one with some on it.  A
    # triangular matrix is its own Schur form.
    if np.any(np.tril(B, -1)) and (
        _within_rounding(T, 1j * np.diag(T).imag) or np.linalg.eigvals(B @ S).real.min() <= 0
    ):
        return None
    rows, columns = np.nonzero(D)
    inverse = np.zeros_like(D)
    inverse[columns, rows] = 1 / D[rows, columns]
    return D @ S @ inverse


def sign_frechet(A: Tensor, E: Tensor) -> Tensor:
    """L of sign: N L + L N = E − S E S with N = A S (Higham, *Functions of Matrices*, theorem 5.3)."""
    S, undefined = sign(A)
    return sign_frechet_at(torch.where(undefined[:, None, None], torch.nan, S), A, E)


def sign_frechet_at(S: Tensor, A: Tensor, E: Tensor) -> Tensor:
    """As :func:`sign_frechet`, given S = sign(A)."""
    (A, of_A), (E, of_E) = _normalized(A), _normalized(E)
    L = sylvester(A @ S, 2 * tangent(S, E))
    # What else there is rounding has left, times one over the distance of eigenvalues from the axis.
    return tangent(S, L) * (of_A / of_E)


# --- square root -----------------------------------------------------------------------------------------------------


def sqrtm(A: Tensor) -> tuple[Tensor, Tensor]:
    """The principal square root by the product form of the Denman–Beavers iteration; Schur where it does not converge.

    A Hermitian matrix takes its eigenvalues: semidefinite ones have a root that the iteration cannot reach.

    Source: Higham, *Functions of Matrices*, (6.29) with determinantal scaling; algorithm 6.3 (Björck & Hammarling).
    """
    A, factor = _normalized(A)
    hermitian = is_hermitian(A)
    X = torch.full_like(A, torch.nan)
    undefined = torch.zeros_like(hermitian)
    if bool(hermitian.any()):
        X[hermitian], undefined[hermitian] = _sqrtm_hermitian(A[hermitian])
    rest = torch.nonzero(~hermitian)[:, 0]
    if rest.numel():
        B = A[rest]
        Y, roundings = _denman_beavers(B)
        real, size = _real(A.dtype), _norm(Y)
        good = _norm(Y @ Y - B) / size.square() <= TRUSTED_RESIDUAL[real]
        # As for the sign; here Y itself says where it lies.
        doubtful = torch.nonzero(good & ~(roundings * torch.finfo(real).eps <= HARMLESS))[:, 0]
        if doubtful.numel():
            smallest = torch.linalg.eigvals(Y[doubtful]).real.amin(-1)
            good[doubtful] = smallest > ON_THE_LINE[real] * size[doubtful]
        X[rest], undefined[rest] = _rescue(B, Y, good, _sqrtm_schur)
    return X / factor.sqrt(), undefined


def _sqrtm_hermitian(A: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(A)
    # Rounding makes the zero eigenvalues of a semidefinite matrix slightly negative.
    tolerance = A.shape[-1] * torch.finfo(values.dtype).eps * values.abs().amax(-1)
    undefined = values[:, 0] < -tolerance
    roots = values.clamp_min(0.0).sqrt().to(A.dtype)
    return (vectors * roots[:, None, :]) @ vectors.mH, undefined


def _denman_beavers(A: Tensor) -> tuple[Tensor, Tensor]:
    """The root, and how many roundings those of M → I amount to at most, as for ``_newton``."""
    n = A.shape[-1]
    eye = _eye(A)
    X, M = A.clone(), A.clone()
    active = torch.arange(A.shape[0], device=A.device)
    scaling = torch.ones(A.shape[0], dtype=torch.bool, device=A.device)
    tolerance = n * torch.finfo(_real(A.dtype)).eps
    roundings = torch.zeros(A.shape[0], dtype=_real(A.dtype), device=A.device)
    for _ in range(MAX_ITERATIONS):
        if not active.numel():
            break
        now = M[active]
        inverse, _ = torch.linalg.inv_ex(now)
        logdet = torch.linalg.slogdet(now).logabsdet
        far = scaling[active]
        mu = torch.where(far, torch.exp(-logdet / (2 * n)), 1.0)
        mu = torch.where(torch.isfinite(mu) & (mu > 0), mu, 1.0)
        c = _column(mu, now)
        size, inverse_size, before = mu**2 * _norm(now), _norm(inverse) / mu**2, roundings[active]
        grown = mu**2 * (1 + inverse_size**2) * before + size + (1 + size * inverse_size) * inverse_size
        roundings[active] = torch.where(far, 0.25 * grown, before)
        X[active] = 0.5 * c * X[active] @ (eye + inverse / c**2)
        after = 0.5 * (eye + 0.5 * (c**2 * now + inverse / c**2))
        M[active] = after
        distance = _norm(after - eye)
        scaling[active] &= distance > 1e-2
        active = active[
            (distance > tolerance) & torch.isfinite(distance) & ((after - now).flatten(1).abs().amax(1) > 0)
        ]
    return X, roundings


def _sqrtm_schur(A: np.ndarray, tolerance: float) -> np.ndarray | None:
    values = np.linalg.eigvals(A)
    size = max(np.linalg.norm(A), np.finfo(float).tiny)
    if np.any((values.real <= tolerance * size) & (np.abs(values.imag) <= tolerance * size)):
        return None
    import scipy.linalg

    # As for the sign, of eigenvalues on both sides of the negative axis.
    if np.any(np.tril(A, -1)) and _within_rounding(A, values.real[values.real <= 0]):
        return None
    return scipy.linalg.sqrtm(A)


def _within_rounding(A: np.ndarray, shifts: np.ndarray) -> bool:
    """Whether A has one of some numbers z for an eigenvalue, to working precision: by the least singular of A − zI."""
    n, limit = A.shape[0], ROUNDING * A.shape[0] * np.finfo(float).eps * np.linalg.norm(A)
    return any(np.linalg.svd(A - z * np.eye(n), compute_uv=False)[-1] <= limit for z in shifts)


def sqrtm_frechet(A: Tensor, E: Tensor) -> Tensor:
    """L of the square root: X L + L X = E (Higham, *Functions of Matrices*, section 6.1)."""
    (A, of_A), (E, of_E) = _normalized(A), _normalized(E)
    X, undefined = sqrtm(A)
    return sylvester(torch.where(undefined[:, None, None], torch.nan, X), E) * (of_A.sqrt() / of_E)


# --- shared -----------------------------------------------------------------------------------------------------------


def _normalized(A: Tensor) -> tuple[Tensor, Tensor]:
    """A·4⁻ᵏ with its largest entry near 1, and 4⁻ᵏ, shape (batch, 1, 1).

    Squares of norms neither overflow nor vanish then.
    """
    largest = largest_part(A)
    exponent = torch.frexp(torch.where(torch.isfinite(largest), largest, 1.0)).exponent
    # Of the smallest numbers the inverse overflows.
    least = math.frexp(torch.finfo(largest.dtype).tiny)[1]
    factor = 0.25 ** (exponent.clamp_min(least) // 2).to(largest.dtype)[:, None, None]
    return A * factor, factor


def sylvester(N: Tensor, C: Tensor) -> Tensor:
    """L with N L + L N = C for N with its spectrum in the open right half-plane.

    Newton for the sign of [[N, C], [0, −N]], blockwise (Roberts 1980, Int. J. Control 32(4)); Bartels–Stewart
    (``scipy.linalg.solve_sylvester``) where its residual is not small.
    """
    L = 0.5 * _newton(N, C)[3]
    residual = _norm(N @ L + L @ N - C) / (_norm(N) * _norm(L) + _norm(C)).clamp_min(1e-300)
    known = is_finite(N) & is_finite(C)
    for i in torch.nonzero(known & ~(residual <= TRUSTED_RESIDUAL[_real(N.dtype)])).flatten().tolist():
        import scipy.linalg

        left, right = (X[i].detach().cpu().numpy() for X in (N, C))
        L[i] = torch.from_numpy(np.asarray(scipy.linalg.solve_sylvester(left, left, right))).to(L)
    return torch.where(known[:, None, None], L, torch.nan)


def _rescue(
    A: Tensor, X: Tensor, good: Tensor, schur: Callable[[np.ndarray, float], np.ndarray | None]
) -> tuple[Tensor, Tensor]:
    """Recompute, one by one in float64, what the iteration did not settle; say where the function does not exist."""
    undefined = torch.zeros_like(good)
    finite = is_finite(A)
    X = torch.where(finite[:, None, None], X, torch.nan)
    for i in torch.nonzero(finite & ~good).flatten().tolist():
        wide = torch.complex128 if A.is_complex() else torch.float64
        result = schur(A[i].to(wide).cpu().numpy(), ON_THE_LINE[_real(A.dtype)])
        if result is None or not np.isfinite(result).all():
            undefined[i] = True
        else:
            root = torch.from_numpy(np.ascontiguousarray(result))
            X[i] = (root if A.is_complex() else root.real).to(X)
    return X, undefined


VALUE: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"expm": expm, "sign": sign, "sqrtm": sqrtm}
FRECHET: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "expm": expm_frechet,
    "sign": sign_frechet,
    "sqrtm": sqrtm_frechet,
}
