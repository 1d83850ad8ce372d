"""Every error stated in the manifest, proven again from the weights; and the proofs themselves."""

from __future__ import annotations

import cmath
import math

import cases
import mpmath
import numpy as np
import pytest
import torch

import neural_expm
from neural_expm.certificate import ExponentialError, half_plane_radius, polynomial
from neural_expm.checkpoints import load_record
from neural_expm.networks.ladder import MAJORANT_RATIO
from neural_expm.training import equivariant

EXPONENTIALS = [r for r in neural_expm.list_models("expm") if r.family == "equivariant"]
# What was set out to be reached: at least these radii (products → ρ) at each tolerance.
ASKED = {
    "float32": (6e-8, {3: 0.65, 4: 2.3, 5: 4.7}),
    "float64": (1.1e-16, {4: 0.68, 5: 1.99, 6: 3.17}),
    "bfloat16": (3.9e-3, {3: 2.3, 4: 5.5}),
}


@pytest.mark.parametrize("record", EXPONENTIALS, ids=lambda r: r.name)
def test_every_stated_epsilon_is_proven_from_the_weights(record):
    network = load_record(record)
    for tier, stated in zip(network.tiers, record.certificate["tiers"], strict=True):
        error = ExponentialError.of(tier)
        assert error.disc(stated["radius"]) <= stated["epsilon"]
        assert error.majorant(stated["majorant_radius"], ratio=MAJORANT_RATIO) <= stated["epsilon"]
        # and not by a loose margin: a little further it fails
        assert error.disc(stated["radius"] * 1.02) > stated["epsilon"]
    tolerance, radii = ASKED[record.dtype]
    reached = {tier["products"]: tier["radius"] for tier in record.certificate["tiers"]}
    assert all(tier["epsilon"] <= tolerance for tier in record.certificate["tiers"])
    assert {m: reached[m] >= radius for m, radius in radii.items()} == dict.fromkeys(radii, True)
    assert {1, 2} <= set(reached)


def test_the_bound_of_the_disc_is_sharp_against_mpmath():
    tier = load_record(neural_expm.list_models("expm")[0]).tiers[3]
    error = ExponentialError.of(tier)
    p = polynomial(tier)
    with mpmath.workdps(60):
        coefficients = [mpmath.mpf(a) / mpmath.mpf(2) ** p.exponent for a in p.numerators]
        for radius in (0.5, 2.0, 5.0):
            points = [radius * mpmath.expjpi(mpmath.mpf(k) / 64) for k in range(128)]
            seen = max(abs(mpmath.polyval(coefficients[::-1], z) * mpmath.exp(-z) - 1) for z in points)
            assert seen <= error.disc(radius) <= seen * 1.1
            assert seen <= error.majorant(radius)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_the_bound_holds_for_non_normal_matrices(n):
    tier = load_record(neural_expm.list_models("expm")[0]).tiers[2]  # coarse, so that rounding is far below
    error = ExponentialError.of(tier)
    shift = torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
    for A in (*cases.ginibre(n, 20, seed=n), shift, shift + 0.3 * torch.eye(n), shift @ shift - shift):
        norm = float(torch.linalg.matrix_norm(A, 2))
        truth = torch.linalg.matrix_exp(A)
        seen = float(torch.linalg.matrix_norm(tier(A) - truth, 2) / torch.linalg.matrix_norm(truth, 2))
        assert seen <= error.disc(norm) + 1e-14


@pytest.mark.parametrize(
    "coefficients", [(1.5, -0.5, 0.0), (15 / 8, -10 / 8, 3 / 8), (1.6, -1.0, 0.4), (8.0, -20.0, 13.0)]
)
def test_half_plane_radius(coefficients):
    a, b, c = coefficients
    radius = half_plane_radius(coefficients)
    assert radius > 0

    def smallest(r):
        angles = np.linspace(-math.pi / 2, math.pi / 2, 2001)[1:-1]
        z = [r * cmath.exp(1j * t) for t in angles]
        return min((a * w + b * w**3 + c * w**5).real / w.real for w in z)

    assert all(smallest(radius * fraction) > 0 for fraction in np.linspace(0.01, 1.0, 50))
    assert smallest(radius * 1.01) < 0


def test_composition_keeps_the_half_plane_as_stated():
    for function in ("sign", "sqrtm"):
        record = next(r for r in neural_expm.list_models(function) if r.family == "equivariant")
        network = load_record(record)
        for stage, stated in zip(network.general.tolist(), record.certificate["general_radii"], strict=True):
            assert half_plane_radius(stage) >= stated
        # Hermitian stages: positive on their intervals, so real eigenvalues keep their signs
        interval = np.linspace(1e-6, 1.0, 10001)
        for a, b, c in network.hermitian.tolist():
            interval = interval * (a + b * interval**2 + c * interval**4)
            assert interval.min() > 0
        assert abs(interval[interval.size // 2 :] - 1).max() < 1e-14


@pytest.mark.parametrize(("dtype", "products"), [("float32", 2), ("bfloat16", 1)])
def test_cheap_tiers_retrain_to_the_stated_radius(dtype, products):
    record = next(r for r in EXPONENTIALS if r.dtype == dtype)
    _, config, _ = equivariant.tier(dtype, products, {})
    assert config["radius"] == pytest.approx(record.certificate["tiers"][products - 1]["radius"], rel=0.01)


def test_compositions_retrain_to_the_shipped_weights(tmp_path):
    from safetensors.torch import load_file

    from neural_expm.manifest import manifest_path
    from neural_expm.training import composition

    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(manifest_path().read_bytes())
    assert composition.main(["--out", str(tmp_path), "--manifest", str(manifest)]) == 0
    for function in ("sign", "sqrtm"):
        record = next(r for r in neural_expm.list_models(function) if r.family == "equivariant")
        made, shipped = load_file(tmp_path / record.file), load_file(record.root / record.file)
        assert made.keys() == shipped.keys()
        for name in made:
            # The exchange algorithm stops within roundings, which differ from processor to processor.
            torch.testing.assert_close(made[name], shipped[name], rtol=1e-10, atol=1e-10)
