"""Domain: the set of matrices that a network's promise speaks of, and the test for membership.

The test is sound: a matrix is called inside only if it provably is (up to rounding).  It first asks for cheap upper
bounds and computes singular or eigenvalues only for the matrices that these leave open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, ManifestError

NORMS = ("2", "inf")
STRUCTURES = ("general", "symmetric", "spd")
# How far a matrix may be from symmetric, relative to its largest entry, before "symmetric" is false: rounding only.
SYMMETRY_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


class Reason(IntEnum):
    """Why a matrix is inside or outside, one code per matrix."""

    INSIDE = 0
    NOT_FINITE = 1
    SIZE = 2
    COMPLEX = 3
    NORM = 4
    STRUCTURE = 5
    SPECTRUM = 6
    NO_CERTIFICATE = 7
    ROUTED = 8
    UNCHECKED = 9

    def __str__(self) -> str:
        return REASON_TEXT[self]


REASON_TEXT = {
    Reason.INSIDE: "inside the domain",
    Reason.NOT_FINITE: "has NaN or infinite entries",
    Reason.SIZE: "the network was not made for this n",
    Reason.COMPLEX: "the network is real, the input complex",
    Reason.NORM: "an upper bound of the norm exceeds the radius of the domain",
    Reason.STRUCTURE: "has not the structure of the domain",
    Reason.SPECTRUM: "the spectrum leaves the domain",
    Reason.NO_CERTIFICATE: "the run-time certificate does not hold",
    Reason.ROUTED: "the exact algorithm is faster here",
    Reason.UNCHECKED: "trusted to be inside the domain",
}


@dataclass(frozen=True)
class Domain:
    """A set of n × n matrices.

    Attributes:
        n: smallest and largest n; None for no upper limit.
        norm: ``"2"`` (spectral norm) or ``"inf"`` (largest absolute row sum).
        radius: upper limit of that norm; ``inf`` for no limit.
        structure: ``"general"``, ``"symmetric"`` or ``"spd"`` (symmetric positive definite).
        complex: whether complex matrices belong to it.
        gap: symmetric: every eigenvalue has modulus ≥ gap · radius₀; spd: smallest ≥ gap · largest. 0 for no demand.
        scale_free: the function is homogeneous (sign, sqrtm), ``radius`` does not matter and gap is relative to the
            largest eigenvalue.
        condition: general: A has eigenvectors, of unit length, with condition number ≤ condition · √n, and gap
            speaks of |Re λ|. 0 for no demand.
    """

    n: tuple[int, int | None] = (0, None)
    norm: str = "2"
    radius: float = float("inf")
    structure: str = "general"
    complex: bool = True
    gap: float = 0.0
    scale_free: bool = False
    condition: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.n
        if self.norm not in NORMS or self.structure not in STRUCTURES or not self.radius > 0:
            raise InputError(
                f"domain with norm {self.norm!r}, structure {self.structure!r}, radius {self.radius!r}: expected a "
                f"norm in {NORMS}, a structure in {STRUCTURES}, radius > 0"
            )
        if low < 0 or (high is not None and high < low):
            raise InputError(
                f"domain with n = {self.n!r}: expected the smallest and the largest n, or None for no limit"
            )

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], name: str = "?") -> Domain:
        """Validate the ``domain`` of a manifest entry.

        Raises:
            ManifestError: unknown key, norm or structure, or a radius that is not positive.
        """
        known = {f.name for f in fields(cls)}
        if not isinstance(entry, Mapping) or (set(entry) - known):
            raise ManifestError(f"checkpoint {name!r}: domain {entry!r} has keys other than {sorted(known)}")
        values = dict(entry)
        try:
            low, high = values.get("n", (0, None))
            values["n"] = (int(low), None if high is None else int(high))
            radius = values.get("radius")
            values["radius"] = float("inf") if radius is None else float(radius)
            values["gap"] = float(values.get("gap", 0.0))
        except (TypeError, ValueError) as error:
            raise ManifestError(
                f"checkpoint {name!r}: domain {entry!r}: {error}; expected n as two integers (the second may be "
                "null), radius and gap as numbers"
            ) from error
        try:
            return cls(**values)
        except InputError as error:
            raise ManifestError(f"checkpoint {name!r}: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest; an infinite radius is null."""
        record = asdict(self)
        record["n"] = list(self.n)
        record["radius"] = None if self.radius == float("inf") else self.radius
        return record

    def __str__(self) -> str:
        low, high = self.n
        size = f"n ≥ {low}" if high is None else f"n = {low}" if low == high else f"{low} ≤ n ≤ {high}"
        norm = "" if self.radius == float("inf") else f", ‖A‖_{self.norm} ≤ {self.radius:g}"
        field_ = "real or complex" if self.complex else "real"
        gap = f", spectral gap ≥ {self.gap:g}" if self.gap else ""
        return f"{self.structure}, {field_}, {size}{norm}{gap}"


def frobenius_norm(A: Tensor) -> Tensor:
    """‖A‖_F of each matrix, shape (*); by real arithmetic, as torch's complex norm is many times slower on a CPU."""
    if A.is_complex():
        return torch.linalg.vector_norm(torch.view_as_real(A.resolve_conj()), dim=(-3, -2, -1))
    return torch.linalg.vector_norm(A, dim=(-2, -1))


def largest_part(A: Tensor) -> Tensor:
    """The largest modulus of a real or imaginary part of each matrix of a batch (batch, n, n); NaN where one is."""
    parts = torch.view_as_real(A.resolve_conj()) if A.is_complex() else A
    return parts.flatten(1).abs().amax(1)


def is_finite(A: Tensor) -> Tensor:
    """Whether each matrix of a batch (batch, n, n) is free of NaN and infinities."""
    return torch.isfinite(largest_part(A))  # all() takes several times as long, being no arithmetic


def is_hermitian(A: Tensor) -> Tensor:
    """Whether each finite matrix of a batch (batch, n, n) equals its adjoint."""
    return (A - A.mH).flatten(1).any(1).logical_not_()  # half the time of comparing and all()


def norm_bound(A: Tensor) -> Tensor:
    """An upper bound of ‖A‖₂ for each matrix: min(√(‖A‖₁‖A‖_∞), ‖A‖_F).

    Args:
        A: shape (*, n, n), real or complex.

    Returns:
        Real tensor of shape (*).  NaN where A has NaN; +inf where it has infinities.

    Source: Higham, *Functions of Matrices*, Table B.2 (‖A‖₂² ≤ ‖A‖₁‖A‖_∞).
    """
    frobenius = frobenius_norm(A)
    modulus = A.abs()
    mixed = torch.sqrt(modulus.sum(-2).amax(-1)) * torch.sqrt(modulus.sum(-1).amax(-1))
    return torch.minimum(frobenius, mixed)


def check(A: Tensor, domain: Domain) -> tuple[Tensor, Tensor]:
    """Which matrices of a batch are inside a domain, and why the others are not.

    Args:
        A: shape (*, n, n), floating or complex.

    Returns:
        ``reason`` (uint8 :class:`Reason` codes) and ``norm`` (upper bound of the domain's norm), both of shape (*).
    """
    A = A.detach()
    n = A.shape[-1]
    norm = (
        A.abs().sum(-1).amax(-1)
        if domain.norm == "inf" and n
        else (norm_bound(A) if n else A.new_zeros(A.shape[:-2]))
    )
    norm = norm.real if norm.is_complex() else norm
    reason = torch.zeros(norm.shape, dtype=torch.uint8, device=A.device)
    if A.is_complex() and not domain.complex:
        reason.fill_(Reason.COMPLEX)
    low, high = domain.n
    if n < low or (high is not None and n > high):
        reason.fill_(Reason.SIZE)
    finite = torch.isfinite(A.abs()).all(-1).all(-1) if n else torch.ones_like(norm, dtype=torch.bool)
    reason = reason.masked_fill(~finite, Reason.NOT_FINITE)
    if not n:
        return reason, norm
    open_ = (reason == Reason.INSIDE) & ~(norm <= domain.radius)
    if domain.norm == "2" and bool(open_.any()):
        # The cheap bound is up to √n too large: ask the singular values before sending a matrix away.
        norm = norm.index_put((open_,), torch.linalg.matrix_norm(A[open_], 2))
        open_ = (reason == Reason.INSIDE) & ~(norm <= domain.radius)
    reason = reason.masked_fill(open_, Reason.NORM)
    if domain.structure != "general":
        reason = _check_structure(A, domain, reason)
    elif domain.condition:
        reason = _check_eigenvectors(A, domain, reason)
    return reason, norm


def _check_eigenvectors(A: Tensor, domain: Domain, reason: Tensor) -> Tensor:
    """Distance of the spectrum from the imaginary axis, and conditioning of the eigenvectors."""
    still = reason == Reason.INSIDE
    if not bool(still.any()):
        return reason
    eigenvalues, vectors = torch.linalg.eig(A[still])
    largest = eigenvalues.abs().amax(-1)
    unit = largest if domain.scale_free else torch.full_like(largest, domain.radius)
    # Unit columns are within √n of the best scaling (van der Sluis 1969).
    condition = torch.linalg.cond(vectors)
    good = (eigenvalues.real.abs().amin(-1) >= domain.gap * unit) & (largest > 0)
    good &= condition <= domain.condition * A.shape[-1] ** 0.5
    return reason.index_put((still,), torch.where(good, Reason.INSIDE, Reason.SPECTRUM).to(reason.dtype))


def _check_structure(A: Tensor, domain: Domain, reason: Tensor) -> Tensor:
    """Symmetry first; eigenvalues only for what is symmetric and only if the domain speaks of them."""
    tolerance = SYMMETRY_TOLERANCE.get(A.dtype, 1e-5)
    asymmetry = (A - A.mT).abs().amax((-2, -1))
    skewed = ~(asymmetry <= tolerance * A.abs().amax((-2, -1)))
    reason = torch.where((reason == Reason.INSIDE) & skewed, reason.new_full((), Reason.STRUCTURE), reason)
    still = reason == Reason.INSIDE
    if (domain.gap or domain.structure == "spd") and bool(still.any()):
        eigenvalues = torch.linalg.eigvalsh(A[still])
        modulus = eigenvalues.abs()
        largest = modulus.amax(-1)
        unit = largest if domain.scale_free else torch.full_like(largest, domain.radius)
        smallest = eigenvalues.amin(-1) if domain.structure == "spd" else modulus.amin(-1)
        bad = ~((smallest >= domain.gap * unit) & (smallest > 0))
        reason = reason.index_put((still,), torch.where(bad, Reason.SPECTRUM, Reason.INSIDE).to(reason.dtype))
    return reason
