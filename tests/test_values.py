"""Values against mpmath, torch and SciPy, and properties that hold for every matrix function."""

from __future__ import annotations

import cases
import mpmath
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neural_expm
from neural_expm.training import data


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 16, 33, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_single_precision_expm(n, dtype):
    A = cases.ginibre(n, 100, dtype=dtype, seed=n)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    error = cases.relative(neural_expm.expm(A), torch.linalg.matrix_exp(A.to(wide)))
    assert error.max() <= cases.VALUE[dtype]


@pytest.mark.parametrize("n", [2, 3, 4, 8, 20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_double_precision_expm_against_mpmath(n, dtype):
    A = cases.ginibre(n, 6, dtype=dtype, seed=n)
    truth = torch.stack([cases.mp_expm(a) for a in A])
    assert cases.relative(neural_expm.expm(A), truth).max() <= cases.VALUE[dtype]


def test_double_precision_expm_of_64_by_64():
    A = cases.ginibre(64, 8, seed=1)
    # No mpmath at this size: two algorithms vouch for each other.
    truth = torch.linalg.matrix_exp(A)
    assert cases.relative(neural_expm.expm(A), truth).max() <= 2 * cases.VALUE[torch.float64]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_one_rounding_from_the_truth(dtype):
    A = cases.ginibre(6, 200).to(dtype)
    truth = torch.linalg.matrix_exp(A.double())
    result = neural_expm.expm(A)
    assert result.dtype == dtype
    ulp = cases.ONE_ROUNDING[dtype]
    small = 6e-8 if dtype == torch.float16 else 0.0  # float16 is denormal below 6e-5
    norm = torch.linalg.matrix_norm(truth)[:, None, None]
    assert bool(((result.double() - truth).abs() <= ulp * truth.abs() + small + 1e-6 * norm).all())


@pytest.mark.parametrize("name", cases.adversarial())
def test_expm_of_adversarial_matrices(name):
    A = cases.adversarial()[name]
    truth = cases.mp_expm(A)
    # Nothing computes exp to better than its condition number times rounding; torch's own error is the yardstick.
    allowed = 3e-15 + 4 * float(cases.relative(torch.linalg.matrix_exp(A), truth))
    assert cases.relative(neural_expm.expm(A), truth) <= allowed


def test_a_batch_of_mixed_norms_equals_its_matrices_one_by_one():
    A = cases.ginibre(4, 400, seed=3) * torch.logspace(-12, 1.5, 400, dtype=torch.float64)[:, None, None]
    together = neural_expm.expm(A)
    alone = torch.stack([neural_expm.expm(a) for a in A])
    assert cases.relative(together, alone).max() <= 2e-14
    # A tiny matrix keeps its own digits: exp(A) − I has A's relative accuracy, whatever shares its batch.
    tiny = A[:50]
    first_order = together[:50] - torch.eye(4, dtype=torch.float64)
    assert bool(((first_order - tiny).abs().amax((1, 2)) <= 4e-16).all())


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 9),
    batch=st.lists(st.integers(1, 4), max_size=3),
    log_norm=st.floats(-8, 3),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float64, torch.complex128]),
)
def test_expm_properties(n, batch, log_norm, seed, dtype):
    A = torch.randn(*batch, n, n, dtype=dtype, generator=cases.generator(seed)) * 10**log_norm / n
    E = neural_expm.expm(A)
    assert E.shape == A.shape
    assert E.dtype == dtype
    norm = torch.linalg.matrix_norm(E).clamp_min(1e-300)
    finite = torch.isfinite(norm) & (norm < 1e150)

    def close(X, Y, digits):
        return bool(((torch.linalg.matrix_norm(X - Y) <= digits * norm) | ~finite).all())

    size = 1 + torch.linalg.matrix_norm(A)
    # SciPy one by one: torch's own complex128 exponential is wrong by 1e-11 at some small norms.
    flat = [torch.from_numpy(scipy.linalg.expm(a.numpy())) for a in A.reshape(-1, n, n)]
    assert close(E, torch.stack(flat).reshape(A.shape), 1e-13 * size)
    assert close(neural_expm.expm(A.mT).mT, E, 1e-13 * size)
    assert close(neural_expm.expm(A.mH).mH, E, 1e-13 * size)


def test_expm_commutes_with_similarity():
    A = cases.ginibre(6, 50, seed=5)
    P = torch.eye(6, dtype=torch.float64) + 0.2 * torch.randn(
        6, 6, dtype=torch.float64, generator=cases.generator(6)
    )
    left = neural_expm.expm(P @ A @ torch.linalg.inv(P))
    right = P @ neural_expm.expm(A) @ torch.linalg.inv(P)
    assert cases.relative(left, right).max() <= 1e-13


def test_structure_is_kept():
    g = cases.generator(0)
    orthogonal = neural_expm.expm(data.skew(8, 50, g))
    assert bool((orthogonal @ orthogonal.mT - torch.eye(8, dtype=torch.float64)).abs().max() < 1e-13)
    stochastic = neural_expm.expm(data.generator(8, 50, g))
    assert bool((stochastic.sum(-1) - 1).abs().max() < 1e-13)
    assert bool(stochastic.min() > -1e-15)
    symmetric = cases.ginibre(8, 50)
    symmetric = symmetric + symmetric.mT
    E = neural_expm.expm(symmetric)
    assert cases.relative(E, E.mT).max() < 1e-14


def test_rtol_takes_fewer_products_and_keeps_its_promise():
    A = cases.ginibre(5, 200, seed=7)
    truth = torch.linalg.matrix_exp(A)

    def cost(report):
        return (report.products + report.squarings).double().mean()

    full = cost(neural_expm.explain("expm", A))
    for rtol in (1e-1, 1e-2, 1e-4, 1e-9):
        result, report = neural_expm.expm(A, rtol=rtol, return_report=True)
        error = torch.linalg.matrix_norm(result - truth, 2) / torch.linalg.matrix_norm(truth, 2)
        assert bool((error <= rtol).all())
        assert bool((error <= report.bound + 1e-14).all())
        assert bool((report.bound <= rtol).all())
        assert cost(report) < full if rtol >= 1e-4 else cost(report) <= full


def test_certified_bound_bounds_what_is_seen():
    for dtype, checkpoint in (
        (torch.float64, "expm-equivariant-bfloat16"),
        (torch.float64, "expm-equivariant-float32"),
    ):
        for n in (2, 6, 40):
            A = cases.ginibre(n, 100, radius=8.0, seed=n).to(dtype)
            result, report = neural_expm.expm(A, model=checkpoint, return_report=True)
            truth = torch.linalg.matrix_exp(A)
            error = torch.linalg.matrix_norm(result - truth, 2) / torch.linalg.matrix_norm(truth, 2)
            assert bool(report.inside.all())
            assert bool((error <= report.bound + 1e-13).all())
            # …and is not vacuous
            assert bool((error > report.bound * 1e-4).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 8, 16, 32])
def test_sign_of_symmetric_matrices(n, dtype):
    A = data.sign_symmetric(n, 100, cases.generator(n), gap=0.01)
    values, vectors = torch.linalg.eigh(A)
    truth = (vectors * values.sign()[:, None, :]) @ vectors.mT
    result, report = neural_expm.sign(A.to(dtype), return_report=True)
    assert bool(report.inside.all())
    assert cases.relative(result, truth).max() <= cases.SIGN[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 8, 16])
def test_sign_of_general_matrices(n, dtype):
    A = data.sign_general(n, 100, cases.generator(n), gap=0.1, condition=10.0)
    values, V = torch.linalg.eig(A)
    truth = ((V * values.real.sign()[:, None, :]) @ torch.linalg.inv(V)).real
    result, report = neural_expm.sign(A.to(dtype), return_report=True)
    assert bool(report.inside.any())
    assert cases.relative(result, truth).max() <= cases.SIGN[dtype]
    # Where the certificate vouches, it bounds the error (in float64, where rounding is far below).
    if dtype == torch.float64:
        error = cases.relative(result, truth)[report.inside]
        assert bool((error <= report.bound[report.inside] + 1e-12).all())


def test_sign_of_complex_matrices():
    values = torch.tensor([1 + 0.5j, -0.7 + 0.1j, 0.3 - 0.2j, -1.0], dtype=torch.complex128)
    V = torch.eye(4) + 0.3 * torch.randn(20, 4, 4, dtype=torch.complex128, generator=cases.generator(0))
    A = (V * values) @ torch.linalg.inv(V)
    truth = (V * values.real.sign()) @ torch.linalg.inv(V)
    result, report = neural_expm.sign(A, return_report=True)
    assert bool(report.inside.any())
    assert cases.relative(result, truth).max() <= 1e-11


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_sqrtm(n):
    P = data.spd(n, 50, cases.generator(n), condition=100.0)
    R, report = neural_expm.sqrtm(P, return_report=True)
    assert bool(report.inside.all())
    assert cases.relative(R @ R, P).max() <= 1e-14
    assert bool((torch.linalg.eigvalsh(R) > 0).all())
    A = torch.linalg.matrix_exp(cases.ginibre(n, 50, seed=n))
    R, report = neural_expm.sqrtm(A, return_report=True)
    assert bool(report.inside.all())
    assert cases.relative(R @ R, A).max() <= 1e-13


def test_what_sqrtm_accepts_does_not_depend_on_the_unit_of_the_matrix():
    # The first are well inside; rounding leaves the last a residual that only the exact algorithm mends.
    A, truth = (torch.cat(X) for X in zip(*(cases.with_roots(4, 3, 10.0**k) for k in (1, 3, 8)), strict=True))
    for unit in (1e-6, 1.0, 1e6):
        R, report = neural_expm.sqrtm(unit * A, return_report=True)
        assert report.inside.tolist() == [True] * 6 + [False] * 3
        error = cases.relative(R / unit**0.5, truth)
        assert error[:6].max() <= 1e-13
        assert error[6:].max() <= 1e-11


def test_the_certificate_of_sign_is_not_fooled_by_an_eigenvalue_that_crosses():
    # Eigenvalues near the imaginary axis leave the half-disc of convergence; a small residual would follow anyway.
    angle = torch.deg2rad(torch.arange(60.0, 89.9, 0.5, dtype=torch.float64))
    A = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], -2
    )
    result, report = neural_expm.sign(A, return_report=True)
    assert not bool(report.inside.all())
    assert bool((result - torch.eye(2, dtype=torch.float64)).abs().max() < 1e-9)


def test_exact_algorithms_rescue_what_newton_cannot():
    defective = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, -1.0]], dtype=torch.float64)
    S = neural_expm.sign(defective)
    assert bool((S @ S - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-12)
    assert bool((S @ defective - defective @ S).abs().max() < 1e-12)
    scaled = torch.tensor([[1e-6, 1.0], [0.0, -1e6]], dtype=torch.float64)
    S = neural_expm.sign(scaled)
    assert torch.allclose(S.diagonal(), torch.tensor([1.0, -1.0], dtype=torch.float64))
    jordan = torch.tensor([[4.0, 1.0], [0.0, 4.0]], dtype=torch.float64)
    assert torch.allclose(
        neural_expm.sqrtm(jordan), torch.tensor([[2.0, 0.25], [0.0, 2.0]], dtype=torch.float64)
    )
    semidefinite = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    R = neural_expm.sqrtm(semidefinite)
    assert torch.allclose(R @ R, semidefinite, atol=1e-12)


@pytest.mark.parametrize("function", ["sign", "sqrtm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_unit_of_the_matrix_matters(function, dtype):
    """Norms whose squares overflow or vanish: sign(4ᵏA) = sign(A), (4ᵏA)^½ = 2ᵏA^½, and the gradients likewise."""
    g = cases.generator(3)
    noise = 0.3 * torch.randn(6, 4, 4, dtype=dtype, generator=g)
    A = torch.diag(torch.tensor([1.0, 2.0, 3.0, -4.0 if function == "sign" else 4.0], dtype=dtype)) + noise
    A[:2] = A[:2] + A[:2].mT
    A[2] = A[2].roll(1, 0) if function == "sign" else A[2]  # eigenvalues at any angle
    G = torch.randn(A.shape, dtype=dtype, generator=g)

    def both(B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = B.clone().requires_grad_()
        value = getattr(neural_expm, function)(leaf)
        return value.detach(), torch.autograd.grad(value, leaf, G)[0]

    value, gradient = both(A)
    largest = 480 if dtype == torch.float64 else 60
    for k in (largest, largest // 2, 8, -8, -largest // 2, -largest):
        got, slope = both(A * 4.0**k)
        factor, steep = (1.0, 4.0**-k) if function == "sign" else (2.0**k, 2.0**-k)
        assert float(cases.relative(got / factor, value).max()) < 100 * torch.finfo(dtype).eps
        assert float(cases.relative(slope / steep, gradient).max()) < 1e4 * torch.finfo(dtype).eps


def _undefined(function: str) -> dict[str, torch.Tensor]:
    """Matrices without a sign, or a principal root, that rounding would carry off the forbidden line."""
    g = cases.generator(7)
    skew = {}
    for n in (2, 4, 6, 8, 12, 18):
        noise = torch.randn(n, n, dtype=torch.float64, generator=g)
        skew[f"skew {n}"] = noise - noise.mT
    noise = torch.randn(4, 4, dtype=torch.complex128, generator=g)
    skew["skew Hermitian"] = noise - noise.mH
    nilpotent = torch.tensor([[8.0, -8.0], [8.0, -8.0]], dtype=torch.float64)
    if function == "sign":
        return {**skew, "nilpotent": nilpotent, "complex nilpotent": nilpotent.to(torch.complex128)}
    P = torch.randn(3, 3, dtype=torch.float64, generator=g)
    twice = P @ torch.diag(torch.tensor([-1.0, -1.0, 2.0], dtype=torch.float64)) @ torch.linalg.inv(P)
    turned = (
        torch.tensor([[-5.0, 9.0], [-4.0, 7.0]], dtype=torch.float64) @ torch.diag(-torch.ones(2)).double()
    )
    return {"twice −1": twice, "Jordan block at −1": turned, "nilpotent": nilpotent}


@pytest.mark.parametrize("function", ["sign", "sqrtm"])
def test_what_does_not_exist_is_never_answered(function):
    """Newton's iteration from the axis ends at some involution that commutes with A; no residual shows that."""
    call = getattr(neural_expm, function)
    for name, A in _undefined(function).items():
        batch = torch.stack([torch.eye(A.shape[0], dtype=A.dtype), A])
        with pytest.raises(neural_expm.UndefinedFunctionError, match=r"batch index \(1,\)"):
            call(batch)
        value = call(batch, outside="nan")
        assert bool(torch.isnan(value[1]).all()), name
        assert not bool(torch.isnan(value[0]).any()), name


def test_badly_scaled_matrices_have_their_signs():
    triangular = torch.tensor([[1.0, 1e9], [0.0, -1.0]], dtype=torch.float64)
    D = torch.diag(torch.tensor([1.0, 1e-7, 1e5], dtype=torch.float64))
    core = torch.tensor([[1.0, 0.4, 0.1], [0.3, -1.2, 0.2], [-0.2, 0.5, 0.8]], dtype=torch.float64)
    expected = neural_expm.sign(core)
    torch.testing.assert_close(neural_expm.sign(triangular)[0, 1], triangular[0, 1])
    scaled = neural_expm.sign(D @ core @ torch.linalg.inv(D))
    torch.testing.assert_close(torch.linalg.inv(D) @ scaled @ D, expected, rtol=1e-9, atol=1e-9)


def test_far_eigenvalues_that_rounding_carries_over_are_noticed():
    """Far from normal: eigenvalues 1e-3 from the axis, and a matrix with some on it nearer than a rounding."""
    answered = 0
    for seed in range(60):
        g = cases.generator(seed)
        Q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=g))[0]
        T = torch.randn(4, 4, dtype=torch.float64, generator=g)
        T = torch.diag(T.diagonal()) + T.triu(1) * 10 ** (5 * torch.rand(1, generator=g).double())
        A = Q @ T @ Q.mT
        try:
            S = neural_expm.sign(A)
        except neural_expm.UndefinedFunctionError:
            continue
        answered += 1
        with mpmath.workdps(40):
            values = mpmath.eig(mpmath.matrix(A.tolist()), left=False, right=False)
        assert abs(float(S.trace()) - sum(1 if value.real > 0 else -1 for value in values)) < 1e-2, seed
    assert 10 < answered < 60
