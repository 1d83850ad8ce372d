"""The named matrix distributions, seeded, in float64, with reference values that do not depend on a network.

A distribution is ``f(n, count, generator, **params) -> (count, n, n)``. Where the spectrum is chosen first,
the sample is built as A = V·core·V⁻¹ from known factors, and sign and square root follow from the same
factors without any iteration (Higham 2008, definition 1.2). The exponential is taken by
scaling and squaring in float64; ``tests/test_data.py`` checks it against ``scipy.linalg.expm``.

Seeds: :func:`split_generator` gives every use of random numbers its own stream. The two top bits of the
32-bit seed of the Mersenne Twister tell training from held-out sets: no training run can draw a test matrix.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from neural_expm.errors import TrainingError

#: Top two bits of the 32-bit seed of each split: no two splits share a stream.
SPLITS = {"train": 0b00, "calibration": 0b10, "test": 0b11, "validation": 0b01}


def split_seed(split: str, seed: int, *index: int) -> int:
    """Return the 32-bit seed of stream ``index`` (step, rank, …) of ``split``; splits never collide."""
    if split not in SPLITS:
        raise TrainingError(f"unknown split {split!r}; use one of {', '.join(sorted(SPLITS))}")
    digest = hashlib.sha256("/".join(map(str, (split, seed, *index))).encode()).digest()
    return SPLITS[split] << 30 | int.from_bytes(digest[:4], "little") >> 2


def split_generator(split: str, seed: int, *index: int) -> torch.Generator:
    """Return a CPU generator seeded by :func:`split_seed`."""
    return torch.Generator().manual_seed(split_seed(split, seed, *index))


@dataclass(frozen=True)
class Factors:
    """A = basis · core · inverse, with the sign and the square root of the (block-)diagonal core known."""

    basis: Tensor
    core: Tensor
    inverse: Tensor
    signs: Tensor  # (count, n): the sign of the real part of the eigenvalue that owns each position

    def matrix(self) -> Tensor:
        return self.basis @ self.core @ self.inverse

    def sign(self) -> Tensor:
        return (self.basis * self.signs.unsqueeze(-2)) @ self.inverse

    def sqrt(self) -> Tensor:
        roots = self.core.diagonal(dim1=-2, dim2=-1).sqrt()
        return (self.basis * roots.unsqueeze(-2)) @ self.inverse


def _normal(n: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, n, n, generator=generator, dtype=torch.float64)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(0, 2, shape, generator=generator).to(torch.float64) - 1.0


def random_orthogonal(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Haar-distributed orthogonal matrices (Mezzadri 2007: QR with the signs of diag R put right)."""
    q, r = torch.linalg.qr(_normal(n, count, generator))
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def _spectral_norm(matrices: Tensor) -> Tensor:
    """Return ‖A‖₂ as (*, 1, 1), from the largest eigenvalue of AᴴA: several times faster than an SVD."""
    gram = matrices.mH @ matrices
    return torch.linalg.eigvalsh(gram)[..., -1].clamp_min(0).sqrt()[..., None, None]


def ginibre(n: int, count: int, generator: torch.Generator, radius: float = 2.0) -> Tensor:
    """A = τ·G/‖G‖₂ with G Gaussian and τ ~ U(0, radius]."""
    return _to_radius(_normal(n, count, generator), radius, generator)


def gaussian_symmetric(
    n: int,
    count: int,
    generator: torch.Generator,
    sigma: float = 5 / math.sqrt(3),
    radius: float | None = None,
) -> Tensor:
    """Symmetric, each entry on and above the diagonal ~ N(0, σ²): the setting of arXiv 2602.07800.

    With ``radius`` the same directions are scaled to ‖A‖₂ ~ U(0, radius], as in :func:`ginibre`.
    """
    upper = _normal(n, count, generator).triu() * sigma
    symmetric = upper + upper.triu(1).mT
    return symmetric if radius is None else _to_radius(symmetric, radius, generator)


def _sign_symmetric(n: int, count: int, generator: torch.Generator, gap: float) -> Factors:
    basis = random_orthogonal(n, count, generator)
    signs = _signs((count, n), generator)
    eigenvalues = signs * _uniform((count, n), gap, 1.0, generator)
    return Factors(basis, torch.diag_embed(eigenvalues), basis.mT, signs)


def sign_symmetric(n: int, count: int, generator: torch.Generator, gap: float = 0.2) -> Tensor:
    """Symmetric in a Haar basis, |λ| ~ U(gap, 1), each sign a fair coin."""
    return _symmetrise(_sign_symmetric(n, count, generator, gap).matrix())


def _sign_general(n: int, count: int, generator: torch.Generator, gap: float, condition: float) -> Factors:
    left, right = random_orthogonal(n, count, generator), random_orthogonal(n, count, generator)
    singular = torch.exp(_uniform((count, n), 0.0, math.log(condition), generator))
    real = _signs((count, n), generator) * _uniform((count, n), gap, 1.0, generator)
    # Positions (0,1), (2,3), … hold a complex pair a ± ib with probability one half, else two real ones.
    pairs = n // 2
    paired = torch.rand(count, pairs, generator=generator) < 0.5
    share = _uniform((count, pairs), -1.0, 1.0, generator)
    first, second = 2 * torch.arange(pairs), 2 * torch.arange(pairs) + 1
    real[:, second] = torch.where(paired, real[:, first], real[:, second])
    imaginary = torch.where(paired, share * (1 - real[:, first] ** 2).sqrt(), torch.zeros_like(share))
    core = torch.diag_embed(real)
    core[:, first, second] = imaginary
    core[:, second, first] = -imaginary
    basis = (left * singular.unsqueeze(-2)) @ right.mT
    inverse = (right / singular.unsqueeze(-2)) @ left.mT
    return Factors(basis, core, inverse, real.sign())


def sign_general(
    n: int, count: int, generator: torch.Generator, gap: float = 0.2, condition: float = 5.0
) -> Tensor:
    """Real, not symmetric: |Re λ| ≥ gap, |λ| ≤ 1, complex pairs included, basis of condition ≤ condition."""
    return _sign_general(n, count, generator, gap, condition).matrix()


def _spd(n: int, count: int, generator: torch.Generator, condition: float) -> Factors:
    basis = random_orthogonal(n, count, generator)
    eigenvalues = torch.exp(_uniform((count, n), -math.log(condition), 0.0, generator))
    return Factors(basis, torch.diag_embed(eigenvalues), basis.mT, torch.ones(count, n, dtype=torch.float64))


def spd(n: int, count: int, generator: torch.Generator, condition: float = 100.0) -> Tensor:
    """Symmetric positive definite in a Haar basis, eigenvalues log-uniform in [1/condition, 1]."""
    return _symmetrise(_spd(n, count, generator, condition).matrix())


def generator(n: int, count: int, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """Rate matrices of Markov chains: off-diagonal ~ Exp(1), rows sum to zero, mean rate ``scale``."""
    rates = -torch.log1p(-torch.rand(count, n, n, generator=generator, dtype=torch.float64))
    rates.diagonal(dim1=-2, dim2=-1).zero_()
    leaving = rates.sum(-1)
    return scale * (rates - torch.diag_embed(leaving)) / leaving.mean(-1)[:, None, None]


def skew(n: int, count: int, generator: torch.Generator, radius: float = 2.0) -> Tensor:
    """Skew-symmetric, ‖A‖₂ ~ U(0, radius]: exp is a rotation."""
    gauss = _normal(n, count, generator)
    return _to_radius(gauss - gauss.mT, radius, generator)


def hermitian(n: int, count: int, generator: torch.Generator, radius: float = 2.0) -> Tensor:
    """Hermitian (complex128), ‖A‖₂ ~ U(0, radius]."""
    gauss = torch.complex(_normal(n, count, generator), _normal(n, count, generator))
    return _to_radius((gauss + gauss.mH) / 2, radius, generator)


def _to_radius(matrices: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    shape = (matrices.shape[0], 1, 1)
    tau = radius * (1.0 - torch.rand(shape, generator=generator, dtype=torch.float64))
    return tau * matrices / _spectral_norm(matrices)


def _symmetrise(matrices: Tensor) -> Tensor:
    """Remove the rounding of V·D·Vᵀ, so that A = Aᵀ holds bit for bit."""
    return (matrices + matrices.mT) / 2


#: name → sampler; the parameters are the sampler's own keyword arguments.
DISTRIBUTIONS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (ginibre, gaussian_symmetric, sign_symmetric, sign_general, spd, generator, skew, hermitian)
}

#: Distributions whose factors are known, with the defaults of their public samplers.
_FACTORED: dict[str, tuple[Callable[..., Factors], dict[str, float], bool]] = {
    "sign_symmetric": (_sign_symmetric, {"gap": 0.2}, True),
    "sign_general": (_sign_general, {"gap": 0.2, "condition": 5.0}, False),
    "spd": (_spd, {"condition": 100.0}, True),
}

#: How the reference value of each function is made, as written in the manifest of every data set.
REFERENCES = {
    "expm": "torch.linalg.matrix_exp in float64; eigendecomposition where the matrix is Hermitian",
    "sign": "V·sign(D)·V⁻¹ from the factors the matrix was built from, float64",
    "sqrtm": "V·√D·V⁻¹ from the factors the matrix was built from, float64",
}


def sample(name: str, n: int, count: int, generator: torch.Generator, **params: float) -> Tensor:
    """Draw (count, n, n) from the distribution called ``name``; TrainingError names what exists."""
    if name not in DISTRIBUTIONS:
        raise TrainingError(f"unknown distribution {name!r}; use one of {', '.join(DISTRIBUTIONS)}")
    if n < 1 or count < 0:
        raise TrainingError(f"n = {n}, count = {count}: n must be at least 1 and count at least 0")
    try:
        return DISTRIBUTIONS[name](n, count, generator, **params)
    except TypeError as error:
        raise TrainingError(f"distribution {name!r} does not take {params}: {error}") from error


def sample_pairs(
    function: str, name: str, n: int, count: int, generator: torch.Generator, **params: float
) -> tuple[Tensor, Tensor]:
    """Draw A and its reference value f(A), both (count, n, n) float64 (complex128 for ``hermitian``)."""
    if function not in REFERENCES:
        raise TrainingError(f"unknown function {function!r}; use one of {', '.join(REFERENCES)}")
    if function == "expm":
        matrices = sample(name, n, count, generator, **params)
        return matrices, exponential(matrices, name in {"gaussian_symmetric", "hermitian"})
    if name not in _FACTORED or (function == "sqrtm") != (name == "spd"):
        wanted = "spd" if function == "sqrtm" else "sign_symmetric, sign_general"
        raise TrainingError(f"{function} has no reference on {name!r}; use {wanted}")
    build, defaults, symmetric = _FACTORED[name]
    factors = build(n, count, generator, **{**defaults, **params})
    value = factors.sign() if function == "sign" else factors.sqrt()
    matrices = factors.matrix()
    return (_symmetrise(matrices), _symmetrise(value)) if symmetric else (matrices, value)


def exponential(matrices: Tensor, hermitian: bool = False) -> Tensor:
    """Return exp(A) in A's dtype: by eigendecomposition if ``hermitian``, else by scaling and squaring."""
    if not hermitian:
        return torch.linalg.matrix_exp(matrices)
    eigenvalues, vectors = torch.linalg.eigh(matrices)
    return (vectors * eigenvalues.exp().unsqueeze(-2)) @ vectors.mH
