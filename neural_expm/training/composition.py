"""Make the sign and square root networks: ``python -m neural_expm.training composition``.

Greedy minimax: each stage is the odd quintic closest to 1 on the interval that the stages before it leave, found by
Remez's exchange.  Greedy is optimal for compositions (Lee et al. 2022; Amsel et al. 2025, "The Polar Express").
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from ..certificate import half_plane_radius
from ..checkpoints import save
from ..manifest import PACKAGE, manifest_path
from ..networks.sign_and_root import EquivariantSign, EquivariantSquareRoot
from .equivariant import add_to_manifest

NEWTON_SCHULZ = (15 / 8, -10 / 8, 3 / 8)  # the limit of the minimax quintic on a short interval around 1
# Hermitian: smallest |λ|/bound that one pass brings to 1 within float64's rounding, and stages of a pass.
HERMITIAN = (0.04, 5)
# General spectra: steep stages throw complex eigenvalues out of the half-disc.  These gentle ones, found by a grid
# search (:func:`angle`), followed by Newton–Schulz, bring |arg λ| ≤ 51° to 1 from anywhere in 0.05 ≤ |λ|/bound ≤ 1.
GENERAL = [(1.6, -1.0, 0.4)] * 4 + [NEWTON_SCHULZ] * 6
GENERAL_SCALE = 0.75
PASSES = 4


def minimax_quintic(low: float, high: float) -> tuple[tuple[float, float, float], float]:
    """The odd quintic closest to 1 on [low, high], and its error, by Remez's exchange."""
    nodes = np.array([low, 0.75 * low + 0.25 * high, 0.35 * low + 0.65 * high, high])
    for _ in range(60):
        system = np.stack([nodes, nodes**3, nodes**5, [1, -1, 1, -1]], 1)
        a, b, c, error = np.linalg.solve(system, np.ones(4))
        squares = np.sort(np.roots([5 * c, 3 * b, a]).real)
        moved = np.array([low, *np.sqrt(squares), high])
        if np.abs(moved - nodes).max() < 1e-14:
            break
        nodes = moved
    return (float(a), float(b), float(c)), abs(float(error))


def stages(gap: float, count: int) -> list[tuple[float, float, float]]:
    """Coefficients of a pass for real λ with gap ≤ |λ| ≤ 1."""
    low, high = gap, 1.0
    result = []
    for _ in range(count):
        if high - low < 1e-3:
            coefficients, error = NEWTON_SCHULZ, 2.5 * (high - 1) ** 3
        else:
            coefficients, error = minimax_quintic(low, high)
        result.append(coefficients)
        low, high = 1 - error, 1 + error
    return result


def angle(coefficients: list[tuple[float, float, float]], scale: float, modulus: float) -> float:
    """The largest θ in degrees such that |arg λ| ≤ θ, |λ|/bound = ``modulus`` reaches 1, certificate included."""
    degrees = np.arange(0.0, 90.0, 0.5)
    z = scale * modulus * np.exp(1j * np.deg2rad(degrees))
    good = np.ones(z.shape, dtype=bool)
    for a, b, c in coefficients:
        good &= np.abs(z) <= half_plane_radius((a, b, c))
        with np.errstate(all="ignore"):
            z = z * (a + b * z**2 + c * z**4)
    good &= np.abs(z - 1) < 1e-8
    return float(degrees[np.argmin(good) - 1]) if not good.all() else 90.0


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m neural_expm.training composition``."""
    parser = argparse.ArgumentParser(prog="python -m neural_expm.training composition", description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKAGE / "weights")
    parser.add_argument("--manifest", type=Path, default=manifest_path())
    options = parser.parse_args(argv)
    hermitian, general = stages(*HERMITIAN), GENERAL
    radii = [half_plane_radius(stage) for stage in general]
    for cls in (EquivariantSign, EquivariantSquareRoot):
        network = cls(len(hermitian), len(general), radii, GENERAL_SCALE, PASSES)
        with torch.no_grad():
            network.hermitian.copy_(torch.tensor(hermitian, dtype=torch.float64))
            network.general.copy_(torch.tensor(general, dtype=torch.float64))
        name = f"{cls.function}-equivariant"
        stored = save(
            network,
            options.out / f"{name}.safetensors",
            name=name,
            function=cls.function,
            family="equivariant",
        )
        entry = {
            "name": name,
            "function": cls.function,
            "family": "equivariant",
            "dtype": "float64",
            "domain": {
                "n": [0, None],
                "radius": None,
                "structure": "general",
                "complex": True,
                "scale_free": True,
            },
            "bound": 1e-3,
            "bound_kind": "certified",
            **stored,
            "repo": "",
            "revision": "",
            "trained_by": "python -m neural_expm.training composition",
            "license": "Apache-2.0",
            "certificate": {
                "general_radii": radii,
                "hermitian_gap": HERMITIAN[0],
                "run_time": "1 - sqrt(1 - residual)",
            },
            "card": "Greedy minimax quintics; the certificate is checked for each matrix as it runs, and a matrix that "
            "fails goes to the exact algorithm.",
        }
        add_to_manifest(entry, options.manifest)
        print(f"{name}: {len(hermitian)} Hermitian and {len(general)} general stages, R = {radii}")
    return 0
