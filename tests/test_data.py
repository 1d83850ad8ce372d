"""The named distributions: what they promise about spectra, their reference values, and their seeds."""

import math

import pytest
import scipy.linalg
import torch

from neural_expm.errors import TrainingError
from neural_expm.training import data

SIZES = (2, 3, 5, 8)

#: Largest departure from a reference in float64, relative: a few hundred roundings of the 8 × 8 products.
ROUNDING = 2e-13


def draw(name, n=4, count=50, seed=0, **params):
    return data.sample(name, n, count, data.split_generator("test", seed), **params)


@pytest.mark.parametrize("name", sorted(data.DISTRIBUTIONS))
@pytest.mark.parametrize("n", SIZES)
def test_a_seed_gives_the_same_finite_matrices(name, n):
    first, again, other = draw(name, n), draw(name, n), draw(name, n, seed=1)
    assert first.shape == (50, n, n)
    assert first.dtype == (torch.complex128 if name == "hermitian" else torch.float64)
    assert torch.isfinite(torch.view_as_real(first) if first.is_complex() else first).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["ginibre", "skew", "hermitian"])
def test_the_spectral_norm_fills_the_radius(name):
    norms = torch.linalg.matrix_norm(draw(name, 4, 4000, radius=3.0), ord=2)
    assert norms.max() <= 3 * (1 + 1e-12)
    # U(0, 3]: mean 1.5 with a standard error of 0.014 at 4000 draws.
    assert abs(norms.mean() - 1.5) < 0.08


def test_gaussian_symmetric_has_the_variance_of_the_paper():
    matrices = draw("gaussian_symmetric", 5, 4000)
    assert torch.equal(matrices, matrices.mT)
    assert abs(matrices.std() - 5 / math.sqrt(3)) < 0.05
    assert abs(matrices.diagonal(dim1=1, dim2=2).std() - 5 / math.sqrt(3)) < 0.06


def test_sign_symmetric_keeps_its_gap():
    matrices = draw("sign_symmetric", 6, 500, gap=0.3)
    spectrum = torch.linalg.eigvalsh(matrices).abs()
    assert torch.equal(matrices, matrices.mT)
    assert spectrum.min() >= 0.3 - 1e-12
    assert spectrum.max() <= 1 + 1e-12


@pytest.mark.parametrize("n", SIZES)
def test_sign_general_keeps_gap_radius_and_conditioning(n):
    matrices = draw("sign_general", n, 500, gap=0.2, condition=5.0)
    eigenvalues = torch.linalg.eigvals(matrices)
    assert eigenvalues.real.abs().min() > 0.2 - 1e-10
    assert eigenvalues.abs().max() < 1 + 1e-10
    share_complex = (eigenvalues.imag.abs() > 1e-9).double().mean()
    assert 0.2 < share_complex < 0.7
    assert torch.linalg.matrix_norm(matrices, 2).max() <= 5 + 1e-10
    assert not torch.equal(matrices, matrices.mT)


def test_spd_spans_its_condition_number():
    spectrum = torch.linalg.eigvalsh(draw("spd", 8, 500, condition=100.0))
    assert spectrum.min() >= 0.01 - 1e-12
    assert spectrum.max() <= 1 + 1e-12
    assert abs(spectrum.log().mean() / math.log(0.01) - 0.5) < 0.02


def test_generator_is_a_rate_matrix():
    matrices = draw("generator", 4, 200, scale=2.0)
    torch.testing.assert_close(matrices.sum(-1), torch.zeros(200, 4, dtype=torch.float64), atol=1e-14, rtol=0)
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    assert (matrices - torch.diag_embed(diagonal)).min() >= 0
    torch.testing.assert_close(-diagonal.mean(-1), torch.full((200,), 2.0, dtype=torch.float64))


def test_skew_is_skew_and_hermitian_is_hermitian():
    assert torch.equal(draw("skew"), -draw("skew").mT)
    assert torch.equal(draw("hermitian"), draw("hermitian").mH)


@pytest.mark.parametrize("name", ["ginibre", "gaussian_symmetric", "skew", "generator", "hermitian"])
def test_exponentials_agree_with_scipy(name):
    matrices, values = data.sample_pairs("expm", name, 5, 30, data.split_generator("test", 3))
    for matrix, value in zip(matrices, values, strict=True):
        expected = torch.from_numpy(scipy.linalg.expm(matrix.numpy()))
        assert torch.linalg.norm(value - expected) <= 20 * ROUNDING * torch.linalg.norm(expected)


@pytest.mark.parametrize("name", ["sign_symmetric", "sign_general"])
def test_signs_agree_with_scipy(name):
    matrices, values = data.sample_pairs("sign", name, 5, 30, data.split_generator("test", 3))
    for matrix, value in zip(matrices, values, strict=True):
        expected = torch.from_numpy(scipy.linalg.signm(matrix.numpy()))
        assert torch.linalg.norm(value - expected) <= 20 * ROUNDING * torch.linalg.norm(expected)


def test_square_roots_agree_with_scipy():
    matrices, values = data.sample_pairs("sqrtm", "spd", 5, 30, data.split_generator("test", 3))
    assert torch.linalg.eigvalsh(values).min() > 0
    for matrix, value in zip(matrices, values, strict=True):
        expected = torch.from_numpy(scipy.linalg.sqrtm(matrix.numpy()))
        assert torch.linalg.norm(value - expected) <= ROUNDING * torch.linalg.norm(expected)


@pytest.mark.parametrize("function_name", [("expm", "ginibre"), ("sign", "sign_general"), ("sqrtm", "spd")])
def test_pairs_hold_the_same_matrices_as_samples(function_name):
    function, name = function_name
    matrices, _ = data.sample_pairs(function, name, 4, 20, data.split_generator("test", 5))
    assert torch.equal(matrices, data.sample(name, 4, 20, data.split_generator("test", 5)))


def test_splits_can_never_share_a_stream():
    seeds = {
        split: {
            data.split_seed(split, seed, step, rank)
            for seed in range(3)
            for step in range(2000)
            for rank in (0, 1)
        }
        for split in data.SPLITS
    }
    for split, mine in seeds.items():
        assert all(0 <= seed < 2**32 for seed in mine), "the Mersenne Twister keeps 32 bits of its seed"
        assert len(mine) > 11_990, f"{split}: almost every stream is its own"
        for other, theirs in seeds.items():
            assert split == other or not mine & theirs


def test_the_generator_uses_every_bit_that_tells_splits_apart():
    draws = [torch.rand(1, generator=torch.Generator().manual_seed(bits << 30 | 12345)) for bits in range(4)]
    assert len({float(x) for x in draws}) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw("ginibri"), "ginibre"),
        (lambda: draw("spd", radius=2.0), "radius"),
        (lambda: draw("spd", n=0), "n = 0"),
        (lambda: data.split_generator("trial", 0), "unknown split 'trial'"),
        (lambda: data.sample_pairs("logm", "spd", 3, 1, torch.Generator()), "logm"),
        (lambda: data.sample_pairs("sign", "ginibre", 3, 1, torch.Generator()), "sign_symmetric"),
        (lambda: data.sample_pairs("sqrtm", "sign_general", 3, 1, torch.Generator()), "spd"),
    ],
)
def test_bad_requests_name_what_exists(call, message):
    with pytest.raises(TrainingError, match=message):
        call()
