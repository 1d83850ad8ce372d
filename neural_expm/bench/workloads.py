"""What is measured: named, seeded batches of matrices, each as an application meets it.

A workload draws its matrices in float64 and rounds them to its dtype; the same name and seed give the same bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Generator, Tensor

from ..errors import InputError
from ..training import data

REAL, COMPLEX = torch.float64, torch.complex128


@dataclass(frozen=True)
class Workload:
    """One batch of matrices and the function that is asked of them.

    Attributes:
        name: unique within its suite.
        batch, n: the input has shape (batch, n, n), or (n, n) where batch is 0: one matrix, as a user would pass it.
        dtype: of the input.
        draw: (batch, n, generator) → float64 or complex128 matrices.
        source: where such matrices come from, in one line.
        function: ``"expm"``, ``"sign"`` or ``"sqrtm"``.
        model: checkpoint to use; None for the default of the dtype.
        trace: the loss is tr f(A), so the cotangent is I; otherwise Gaussian.
    """

    name: str
    batch: int
    n: int
    dtype: torch.dtype
    draw: Callable[[int, int, Generator], Tensor]
    source: str
    function: str = "expm"
    model: str | None = None
    trace: bool = False

    @property
    def count(self) -> int:
        """Number of matrices."""
        return max(self.batch, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input."""
        return (self.batch, self.n, self.n) if self.batch else (self.n, self.n)

    def matrices(self, seed: int = 0) -> Tensor:
        """The input, ``shape`` and ``dtype`` as stated."""
        return self.draw(self.count, self.n, self._generator(seed, "A")).to(self.dtype).reshape(self.shape)

    def cotangent(self, seed: int = 0) -> Tensor:
        """The gradient of the loss with respect to f(A), same shape and dtype as the input."""
        if self.trace:
            return torch.eye(self.n, dtype=self.dtype).expand(self.shape).contiguous()
        wide = COMPLEX if self.dtype.is_complex else REAL
        return torch.randn(self.shape, dtype=wide, generator=self._generator(seed, "G")).to(self.dtype)

    def smaller(self, batch: int, n: int | None = None) -> Workload:
        """The same kind of matrices, at most ``batch`` of them and at most ``n`` × ``n``."""
        return replace(self, batch=min(self.batch, batch), n=min(self.n, n or self.n))

    def _generator(self, seed: int, use: str) -> Generator:
        digest = hashlib.sha256(f"{self.name}/{use}/{seed}".encode()).digest()
        return Generator().manual_seed(int.from_bytes(digest[:4], "little"))


# --- draws: applications ------------------------------------------------------------------------------------


def _normal(shape: tuple[int, ...], g: Generator) -> Tensor:
    return torch.randn(shape, dtype=REAL, generator=g)


def _uniform(shape: tuple[int, ...], g: Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=REAL, generator=g)


def _exponential(shape: tuple[int, ...], g: Generator) -> Tensor:
    return -torch.log1p(-torch.rand(shape, dtype=REAL, generator=g))


def _gamma_rates(categories: int, g: Generator) -> Tensor:
    """Rates of mean 1 over sites: quantile classes of a Gamma(1/2) sample (a scaled χ² of one degree; Yang 1994)."""
    sample = _normal((categories * 1000,), g).square().sort().values
    rates = sample.reshape(categories, -1).mean(1)
    return rates / rates.mean()


def reversible_generators(
    batch: int, n: int, g: Generator, categories: int = 10, neighbours: Tensor | None = None
) -> Tensor:
    """GTR: q_ij = s_ij π_j, mean rate 1, times a branch length t ~ Exp(10) and a gamma rate of the site.

    Where ``neighbours``, (n, n), is 0, s_ij is.
    """
    branches = -(-batch // categories)
    exchange = _exponential((n, n), g).triu(1)
    if neighbours is not None:
        exchange = exchange * neighbours
    frequencies = _exponential((n,), g)
    frequencies = frequencies / frequencies.sum()
    Q = (exchange + exchange.mT) * frequencies
    Q = Q - torch.diag(Q.sum(-1))
    Q = Q / -(frequencies * Q.diagonal()).sum()
    lengths = _exponential((branches,), g) / 10
    times = (lengths[:, None] * _gamma_rates(categories, g)).reshape(-1)[:batch]
    return times[:, None, None] * Q


def amino_generators(batch: int, n: int, g: Generator) -> Tensor:
    """As :func:`reversible_generators` with one rate for all sites."""
    return reversible_generators(batch, n, g, categories=1)


def codon_generators(batch: int, n: int, g: Generator) -> Tensor:
    """As :func:`amino_generators` for the first n codons that are no stop: one nucleotide changes at a time."""
    codons = [codon for codon in product("TCAG", repeat=3) if "".join(codon) not in ("TAA", "TAG", "TGA")][:n]
    changes = [[sum(x != y for x, y in zip(a, b, strict=True)) for b in codons] for a in codons]
    return reversible_generators(batch, n, g, categories=1, neighbours=torch.tensor(changes) == 1)


def rotation_vectors(batch: int, n: int, g: Generator) -> Tensor:
    """[ω]ₓ with a uniform axis and angle ~ U(0, π)."""
    axis = _normal((batch, 3), g)
    omega = axis / axis.norm(dim=-1, keepdim=True) * _uniform((batch, 1), g, 0, math.pi)
    x, y, z = omega.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(batch, 3, 3)


def twists(batch: int, n: int, g: Generator) -> Tensor:
    """[[ω]ₓ v; 0 0] with a unit-variance translation."""
    A = torch.zeros(batch, 4, 4, dtype=REAL)
    A[:, :3, :3] = rotation_vectors(batch, 3, g)
    A[:, :3, 3] = _normal((batch, 3), g)
    return A


def squared_weights(batch: int, n: int, g: Generator) -> Tensor:
    """W∘W: an Erdős–Rényi DAG of mean degree 4, |w| ~ U(0.5, 2), and the small dense rest of an optimiser's iterate."""
    edges = (torch.rand((batch, n, n), dtype=REAL, generator=g) < min(1.0, 4 / n)).tril(-1)
    W = edges * _uniform((batch, n, n), g, 0.5, 2.0) + 0.05 * _normal((batch, n, n), g)
    order = torch.randperm(n, generator=g)
    return W[:, order][:, :, order].square()


def two_qubit_pulses(batch: int, n: int, g: Generator) -> Tensor:
    """−iHΔt with H of σ_z⊗σ_z coupling and x, y drives on both qubits, scaled to ‖·‖₂ = 0.3."""
    one = torch.eye(2, dtype=COMPLEX)
    x = torch.tensor([[0, 1], [1, 0]], dtype=COMPLEX)
    y = torch.tensor([[0, -1j], [1j, 0]], dtype=COMPLEX)
    z = torch.tensor([[1, 0], [0, -1]], dtype=COMPLEX)
    terms = torch.stack(
        [torch.kron(a, b) for a, b in ((z, z), (x, one), (y, one), (one, x), (one, y), (z, one))]
    )
    H = torch.einsum("bk,kij->bij", _normal((batch, len(terms)), g).to(COMPLEX), terms)
    return -0.3j * H / torch.linalg.matrix_norm(H, 2)[:, None, None]


def sampled_dynamics(batch: int, n: int, g: Generator) -> Tensor:
    """Δt·[A B c; 0 0 0]: n − 4 states, 3 inputs and an offset, time constants from 0.1 to 10 s, Δt = 0.05 s."""
    states = n - 4
    A = torch.zeros(batch, n, n, dtype=REAL)
    A[:, :states, :states] = _normal((batch, states, states), g) / math.sqrt(states)
    poles = -torch.exp(_uniform((batch, states), g, math.log(0.1), math.log(10)))
    A[:, range(states), range(states)] += poles
    A[:, :states, states:] = _normal((batch, states, 4), g)
    return 0.05 * A


def heat_kernels(batch: int, n: int, g: Generator) -> Tensor:
    """−tL with L the normalised Laplacian of a random geometric graph, t log-uniform in [0.1, 10]."""
    points = _uniform((batch, n, 2), g)
    # Radius of mean degree 10.
    near = torch.cdist(points, points) < math.sqrt(10 / (math.pi * n))
    weight = near.to(REAL) - torch.eye(n, dtype=REAL)
    scale = weight.sum(-1).clamp_min(1).rsqrt()
    laplacian = torch.eye(n, dtype=REAL) - scale[:, :, None] * weight * scale[:, None, :]
    return -torch.exp(_uniform((batch, 1, 1), g, math.log(0.1), math.log(10))) * laplacian


def diffusion_times(batch: int, n: int, g: Generator) -> Tensor:
    """−tL as :func:`heat_kernels`, with one L for all t."""
    L = heat_kernels(1, n, g)[0]
    return torch.exp(_uniform((batch, 1, 1), g, math.log(0.1), math.log(10))) * (L / L.abs().max())


def skew_weights(batch: int, n: int, g: Generator) -> Tensor:
    """(G − Gᵀ)/√(2n) with G Gaussian: ‖A‖₂ ≈ 2."""
    G = _normal((batch, n, n), g)
    return (G - G.mT) / math.sqrt(2 * n)


def log_cells(batch: int, n: int, g: Generator) -> Tensor:
    """Symmetric logarithm of a lattice: log lengths ~ N(ln 5 Å, 0.3²), shears ~ N(0, 0.1²)."""
    shear = (0.1 * _normal((batch, n, n), g)).triu(1)
    return shear + shear.mT + torch.diag_embed(math.log(5) + 0.3 * _normal((batch, n), g))


def ginibre(batch: int, n: int, g: Generator) -> Tensor:
    """``ginibre(n, 2)`` of ``training/data.py``."""
    return data.ginibre(n, batch, g)


def named(name: str, **params: float) -> Callable[[int, int, Generator], Tensor]:
    """A distribution of ``training/data.py`` as a draw."""
    return lambda batch, n, g: data.sample(name, n, batch, g, **params)


# --- suites -------------------------------------------------------------------------------------------------

f32, f64, c64 = torch.float32, torch.float64, torch.complex64

APPS = (
    Workload(
        "phylogenetics-dna",
        7880,
        4,
        f64,
        reversible_generators,
        "GTR generators, 788 branches × 10 gamma rates",
    ),
    Workload("phylogenetics-amino", 788, 20, f64, amino_generators, "amino-acid generators, 788 branches"),
    Workload("rotation-so3", 100_000, 3, f32, rotation_vectors, "rotation vectors, angle ~ U(0, π)"),
    Workload("rigid-se3", 100_000, 4, f32, twists, "twists of rigid motions"),
    Workload("quantum-pulses", 1000, 4, c64, two_qubit_pulses, "two-qubit pulses −iHΔt, ‖·‖₂ = 0.3"),
    Workload("control-zoh", 200, 14, f64, sampled_dynamics, "zero-order hold of [A B c; 0], Δt = 50 ms"),
    Workload("crystal-cell", 1000, 3, f64, log_cells, "logarithms of crystal cells"),
    Workload("graph-heat", 32, 100, f32, heat_kernels, "heat kernels e^{−tL} of geometric graphs"),
    Workload("notears-20", 0, 20, f64, squared_weights, "acyclicity tr e^{W∘W}, 20 variables", trace=True),
    Workload("notears-100", 0, 100, f64, squared_weights, "acyclicity tr e^{W∘W}, 100 variables", trace=True),
    Workload("orthogonal-128", 0, 128, f32, skew_weights, "orthogonal layer by a skew weight"),
    Workload("orthogonal-512", 0, 512, f32, skew_weights, "orthogonal layer by a skew weight"),
)

QUICK = (
    Workload("single-3", 0, 3, f32, ginibre, "one matrix, ‖A‖₂ ≤ 2"),
    Workload("batch-4", 1000, 4, f32, ginibre, "ginibre(4, R = 2)"),
    Workload("batch-8", 1000, 8, f64, ginibre, "ginibre(8, R = 2)"),
    Workload("batch-32", 100, 32, f32, ginibre, "ginibre(32, R = 2)"),
)


# A batch of this many is the same question as a smaller one, asked of enough matrices to fill every thread.
LARGE = 10_000


def _name(function: str, kind: str, batch: int, n: int, label: str) -> str:
    return f"{function}-{kind}-{n}{'-large' if batch >= LARGE else ''}-{label}"


def _function_workloads() -> tuple[Workload, ...]:
    draws = (
        (
            "sign",
            "symmetric",
            named("sign_symmetric", gap=0.01),
            "sign_symmetric, gap 0.01",
            ((1000, 8), (LARGE, 8), (100, 32)),
        ),
        (
            "sign",
            "general",
            named("sign_general", gap=0.1, condition=10.0),
            "sign_general, gap 0.1, κ ≤ 10",
            ((1000, 8), (LARGE, 8), (200, 16)),
        ),
        ("sqrtm", "spd", named("spd", condition=100.0), "spd, κ ≤ 100", ((1000, 8), (100, 32))),
    )
    return tuple(
        Workload(_name(function, kind, batch, n, label), batch, n, dtype, draw, source, function)
        for function, kind, draw, source, sizes in draws
        for batch, n in sizes
        for dtype, label in ((f32, "f32"), (f64, "f64"))
    )


# Many times of one larger generator, beside the two of APPS.
TIMES = (
    Workload("codon", 788, 61, f64, codon_generators, "codon generators, 788 branches"),
    Workload("codon-f32", 788, 61, f32, codon_generators, "codon generators, 788 branches"),
    Workload("diffusion", 200, 100, f64, diffusion_times, "heat kernels of one graph at 200 times"),
    Workload("diffusion-f32", 200, 100, f32, diffusion_times, "heat kernels of one graph at 200 times"),
)

SUITES: dict[str, tuple[Workload, ...]] = {
    "quick": QUICK,
    "apps": APPS,
    "functions": _function_workloads(),
    "times": TIMES,
}


def select(suite: str, names: list[str] | None = None) -> tuple[Workload, ...]:
    """The workloads of a suite, all or those named.

    Raises:
        InputError: no such suite or workload; the message lists those that exist.
    """
    if suite not in SUITES:
        raise InputError(f"bench: no suite {suite!r}; there are {', '.join(SUITES)}")
    chosen = SUITES[suite]
    known = [workload.name for workload in chosen]
    if unknown := sorted(set(names or ()) - set(known)):
        raise InputError(
            f"bench: suite {suite!r} has no workload {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return tuple(workload for workload in chosen if not names or workload.name in names)
