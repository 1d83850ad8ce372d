"""Newton's iteration for the matrices that a network refused, by LAPACK and by machine code, and what judges it."""

from __future__ import annotations

import cases
import pytest
import torch
from assembled_cases import DTYPES, WIDTHS, before_a_wall, needs_code

import neural_expm
from neural_expm import exact, refused
from neural_expm.bench import truth
from neural_expm.kernels import assembled, newton
from neural_expm.kernels.assembled import kernel as assembled_kernel
from neural_expm.kernels.assembled.newton import NewtonKernel
from neural_expm.training import data

# Relative difference of two computations, in roundings: some five inverses, of matrices of condition up to a hundred.
ROUNDINGS = 2000


@pytest.fixture(params=WIDTHS, ids=lambda wide: "AVX-512" if wide else "AVX2")
def width(request, monkeypatch):
    """Registers of one width."""
    monkeypatch.setattr(assembled_kernel, "wide", lambda: request.param)


def matrices(count: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    """Of all sizes, with eigenvalues at any angle, and with pivots away from the diagonal in every third."""
    g = cases.generator(n)
    noise = torch.randn(count, n, n, dtype=dtype, generator=g) / n**0.5
    A = torch.diag(1.0 - 2.0 * (torch.arange(n) % 2)).to(dtype) + 0.3 * noise
    A[1::3] = A[1::3].flip(1)
    A[2::3].diagonal(dim1=-2, dim2=-1).zero_()
    return A * torch.logspace(-9, 9, count, dtype=dtype.to_real())[:, None, None]


def by_code(
    kernel: NewtonKernel, A: torch.Tensor, E: torch.Tensor | None = None, steps: int = refused.STEPS
) -> tuple[torch.Tensor, newton.Evidence]:
    """The sign or the derivative of every matrix, in memory that held NaN; likewise the workspace."""
    if (memory := assembled_kernel._workspace.memory) is not None:
        memory.fill_(255)
    out = torch.full(A.shape, torch.nan, dtype=A.dtype)
    return out, kernel.sign(A, E, steps, torch.arange(A.shape[0]), out)


def error(X: torch.Tensor, Y: torch.Tensor) -> float:
    """Largest relative Frobenius error, in roundings."""
    return float(cases.relative(X, Y).max()) / torch.finfo(X.dtype).eps


def derivative_error(L: torch.Tensor, right: torch.Tensor, A: torch.Tensor, E: torch.Tensor) -> float:
    """As :func:`error`, beside ‖E‖/‖A‖ too: the derivative at a definite matrix is zero."""
    norm = torch.linalg.matrix_norm
    return float((norm(L - right) / (norm(right) + norm(E) / norm(A))).max()) / torch.finfo(L.dtype).eps


# --- the iteration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 8, 20])
@pytest.mark.parametrize("field", [torch.float64, torch.complex128])
def test_signs_and_derivatives_are_true(n, field):
    A = matrices(40, n, field)
    E = torch.randn(A.shape, dtype=field, generator=cases.generator(1))
    S, L, evidence = newton.sign(A, E, refused.STEPS)
    good = refused._convincing(evidence)
    assert float(good.double().mean()) > 0.4
    assert L is not None
    expected, undefined = exact.sign(A[good])
    assert not bool(undefined.any())
    assert error(S[good], expected) < ROUNDINGS
    assert derivative_error(L[good], exact.sign_frechet(A[good], E[good]), A[good], E[good]) < 100 * ROUNDINGS


def test_rounding_is_never_underestimated():
    """In single precision, beside the truth: what is said of X bounds what becomes of its sign."""
    eps = torch.finfo(torch.float32).eps
    worst = 0.0
    for seed, gap in enumerate((0.3, 0.1, 0.03, 0.01)):
        draw = {"gap": gap, "condition": 10.0}
        A = data.sample("sign_general", 6, 300, cases.generator(seed), **draw).float()
        S, _, evidence = newton.sign(A, None, 12)
        size, harm = evidence.size.double(), evidence.roundings.double() * eps
        near = (evidence.residual < 1e-3) & (harm * size**2 <= exact.HARMLESS)
        assert int(near.sum()) > 30
        right = torch.from_numpy(truth.sign(A[near].double().numpy())).double()
        # Near a sign its derivative is at most ½(1 + ‖S‖²).
        allowed = (harm * size)[near] * 0.5 * (1 + size[near] ** 2) + 8 * eps * size[near] ** 2
        worst = max(worst, float((torch.linalg.matrix_norm(S[near].double() - right) / allowed).max()))
    assert 1e-4 < worst < 1


@pytest.mark.parametrize("code", [False, pytest.param(True, marks=needs_code)])
def test_an_eigenvalue_near_the_axis_is_never_on_the_wrong_side(code, machine_code):
    """Real parts from a thousandth of a rounding to a hundredth: what is not left to the exact algorithm is right."""
    machine_code.setenv("NEURAL_EXPM_ASSEMBLE", str(int(code)))
    assembled.forget()
    g = cases.generator(5)
    delta = torch.logspace(-19, -2, 400, dtype=torch.float64)
    delta[::2] *= -1
    P = torch.randn(400, 3, 3, dtype=torch.float64, generator=g)
    block = torch.zeros(400, 3, 3, dtype=torch.float64)
    block[:, 0, 0] = block[:, 1, 1] = delta
    block[:, 0, 1], block[:, 1, 0], block[:, 2, 2] = -1.0, 1.0, 2.0
    A = P @ block @ torch.linalg.inv(P)
    S = torch.empty_like(A)
    left = refused._attempt(A, None, torch.arange(400), S)
    assert assembled.state()["newton", 3, torch.float64] == ("ready" if code else "none")
    answered = torch.ones(400, dtype=torch.bool).index_fill(0, left, False)
    assert not bool(answered[delta.abs() < 1e-13].any())
    assert float(answered[delta.abs() > 1e-3].double().mean()) > 0.5
    trace = S.diagonal(dim1=1, dim2=2).sum(1)[answered]
    torch.testing.assert_close(trace, 1 + 2 * delta[answered].sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("code", [False, pytest.param(True, marks=needs_code)])
def test_matrices_without_a_sign_and_bad_ones_are_left(code, machine_code):
    machine_code.setenv("NEURAL_EXPM_ASSEMBLE", str(int(code)))
    A = matrices(40, 4, torch.float64)
    A[5], A[6], A[7, 0, 0], A[8, 1, 1], A[9], A[10] = 0, 1, torch.nan, torch.inf, A[9] * 1e200, A[10] * 1e-200
    with_turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    A[11] = torch.block_diag(with_turn, with_turn)
    S = torch.full_like(A, -7.0)
    rows = torch.arange(2, 38)
    left = rows[refused._attempt(A, None, rows, S)]
    assert {5, 6, 7, 8, 9, 10, 11} <= set(left.tolist())
    assert bool((S[:2] == -7).all())
    assert bool((S[38:] == -7).all())
    undefined = refused.sign(A, rows, S)
    assert rows[undefined].tolist() == [5, 6, 11]
    good = torch.tensor([row for row in rows.tolist() if row not in (5, 6, 7, 8, 11)])
    assert error(S[good], exact.sign(A[good])[0]) < ROUNDINGS


# --- machine code -----------------------------------------------------------------------------------------------------


@needs_code
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 3, 5, 8, 13, 16])
def test_code_agrees_with_lapack(width, n, dtype):
    kernel = NewtonKernel(n, dtype)
    for count in (1, kernel.lanes + 1, 50):
        A = matrices(count, n, dtype)
        E = torch.randn(A.shape, dtype=dtype, generator=cases.generator(1))
        spread = torch.zeros(count, 2 * n, n, dtype=dtype)[:, ::2].copy_(A)
        for B in (A, A.mT, A.mH, A.conj(), spread):
            S, evidence = by_code(kernel, B)
            L, _ = by_code(kernel, B, E)
            right, derivative, expected = newton.sign(B, E, refused.STEPS)
            assert derivative is not None
            good = refused._convincing(expected)
            assert count == 1 or float(good.double().mean()) > 0.3
            if not bool(good.any()):
                continue
            assert error(S[good], right[good]) < ROUNDINGS
            assert derivative_error(L[good], derivative[good], B[good], E[good]) < 100 * ROUNDINGS
            for name in ("size", "roundings", "matrix"):
                got, value = getattr(evidence, name)[good], getattr(expected, name)[good]
                torch.testing.assert_close(got, value, rtol=5e-2, atol=0)
            assert bool((refused._convincing(evidence) == good).double().mean() > 0.9)


@needs_code
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_result_depends_on_nothing_but_its_matrix(width, dtype):
    kernel, A = NewtonKernel(4, dtype), matrices(61, 4, dtype)
    S, evidence = by_code(kernel, A)
    order = torch.randperm(61, generator=cases.generator(2))
    moved, other = by_code(kernel, A[order])
    good = refused._convincing(evidence)
    assert int(good.sum()) > 20
    assert torch.equal(moved[good[order]], S[order][good[order]])
    assert torch.equal(other.roundings[good[order]], evidence.roundings[order][good[order]])
    A[5], A[6], A[7, 0, 0], A[8, 1, 1] = 0, 1, torch.nan, torch.inf
    good[5:9] = False
    spoilt, verdict = by_code(kernel, A)
    assert torch.equal(spoilt[good], S[good])
    assert not bool(refused._convincing(verdict)[5:9].any())
    one = int(good.nonzero()[0])
    assert torch.equal(by_code(kernel, A[one].expand(9, 4, 4))[0], S[one].expand(9, 4, 4))


@needs_code
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_rows_asked_for_are_written_and_nothing_beyond_a_batch(width, dtype):
    """Otherwise the process ends here."""
    kernel, A = NewtonKernel(3, dtype), before_a_wall(matrices(21, 3, dtype))
    E, out = before_a_wall(torch.ones_like(A)), before_a_wall(torch.zeros_like(A))
    S, _ = by_code(kernel, A)
    rows = before_a_wall(torch.tensor([20, 3, 7]))
    kernel.sign(A, None, refused.STEPS, rows, out)
    assert torch.equal(out[rows], S[rows])
    kernel.sign(A, E, refused.STEPS, rows, out)
    assert torch.equal(out[rows], by_code(kernel, A, E)[0][rows])
    assert int((out != 0).flatten(1).any(1).sum()) == 3


@needs_code
def test_newton_takes_it(machine_code):
    A = data.sample("sign_general", 5, 64, cases.generator(0), gap=0.1, condition=10.0)
    with_code = neural_expm.sign(A)
    assert assembled.state()["newton", 5, torch.float64] == "ready"
    machine_code.setenv("NEURAL_EXPM_ASSEMBLE", "0")
    assembled.forget()
    assert error(with_code, neural_expm.sign(A)) < ROUNDINGS
    assert assembled.state()["newton", 5, torch.float64] == "none"


@needs_code
def test_wrong_code_is_refused(machine_code):
    machine_code.setattr(NewtonKernel, "discrepancy", lambda kernel: 1.0)
    A = data.sample("sign_general", 5, 64, cases.generator(0), gap=0.1, condition=10.0)
    assert error(neural_expm.sign(A), exact.sign(A)[0]) < ROUNDINGS
    assert assembled.state()["newton", 5, torch.float64] == "none"
    assert neural_expm.kernels.available()["assembled"].count("wrong")
