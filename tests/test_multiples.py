"""Multiples of one matrix: recognised to the last digit, answered in its eigenbasis, and everything else as ever."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import torch
from torch import Tensor

import neural_expm
from neural_expm.bench import truth
from neural_expm.bench.workloads import reversible_generators
from neural_expm.kernels import one_parameter
from neural_expm.kernels.eigenbasis import MOST_CONDITION, eigenbasis, refined, symmetrizing
from neural_expm.kernels.multiples import ROUNDINGS, multiples_of

COUNT = 120


@pytest.fixture
def shared(eager):
    """Torch operations, and every batch is looked into."""
    eager.setattr(one_parameter, "COST", 0.0)
    eager.setattr(one_parameter, "FEWEST", 4)
    return eager


def times(count: int = COUNT, seed: int = 0) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=cases.generator(seed))


def symmetric(n: int, norm: float = 2.0) -> Tensor:
    S = torch.randn(n, n, dtype=torch.float64, generator=cases.generator(n))
    return norm * (S + S.T) / torch.linalg.matrix_norm(S + S.T, 2)


def laplacian(n: int) -> Tensor:
    """Of a ring beside a lonely vertex and another ring: zeros, parts, and every eigenvalue twice."""
    ring = torch.zeros(n, n, dtype=torch.float64)
    half = n // 2
    for start, size in ((0, half), (half + 1, n - half - 1)):
        for i in range(size):
            a, b = start + i, start + (i + 1) % size
            if a != b:
                ring[a, b] = ring[b, a] = 1.0
    return ring - torch.diag(ring.sum(1))


def jukes_cantor(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.float64) / n - torch.eye(n, dtype=torch.float64)


def chain(n: int, ratio: float = 1.7) -> Tensor:
    """A birth–death process: tridiagonal, reversible, D from 1 to ratio^{(n − 1)/2}."""
    up = torch.diag(torch.full((n - 1,), ratio, dtype=torch.float64), 1)
    rates = up + torch.diag(torch.ones(n - 1, dtype=torch.float64), -1)
    return rates - torch.diag(rates.sum(1))


def reversible(n: int) -> Tensor:
    return reversible_generators(2, n, cases.generator(n), categories=1)[0] * 20


GENERATORS = {
    "symmetric": symmetric(6),
    "symmetric, large": symmetric(30, 8.0),
    "negative definite": symmetric(5) - 9.0 * torch.eye(5, dtype=torch.float64),
    "laplacian with zeros": laplacian(9),
    "one eigenvalue": jukes_cantor(4),
    "chain": chain(9),
    "reversible 4": reversible(4),
    "reversible 20": reversible(20),
    "diagonal": torch.diag(torch.tensor([-1.0, 0.0, 0.0, 2.0], dtype=torch.float64)),
    "two": torch.tensor([[-1.0, 1.0], [0.25, -0.25]], dtype=torch.float64),
}


def grids() -> dict[str, Tensor]:
    return {
        "any": times(),
        "from zero": torch.linspace(0, 1, COUNT, dtype=torch.float64),
        "both signs": torch.linspace(-1, 1, COUNT + 1, dtype=torch.float64),
        "tiny to one": torch.logspace(-30, 0, COUNT, dtype=torch.float64),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GENERATORS)
def test_values_and_gradients_are_right(shared, name, dtype):
    Q = GENERATORS[name]
    for grid in grids().values():
        A = (grid[:, None, None] * Q).to(dtype)
        G = torch.randn(A.shape, dtype=dtype, generator=cases.generator(1))
        leaf = A.clone().requires_grad_()
        value, report = neural_expm.expm(leaf, return_report=True)
        assert report.kernel == "eigenbasis"
        assert bool(report.inside.all())
        (gradient,) = torch.autograd.grad(value, leaf, G)
        rows = truth.sample(A, False)[:: 1 if len(A) < 50 else 7]
        exact = torch.from_numpy(np.asarray(truth.value("expm", A[rows]), dtype=np.float64))
        derivative = torch.from_numpy(np.asarray(truth.gradient("expm", A[rows], G[rows]), dtype=np.float64))
        classical = leaf.detach().clone().requires_grad_()
        theirs = torch.linalg.matrix_exp(classical)
        (their_gradient,) = torch.autograd.grad(theirs, classical, G)
        for ours, other, right, limit in (
            (value, theirs, exact, cases.VALUE[dtype]),
            (gradient, their_gradient, derivative, cases.GRADIENT[dtype]),
        ):
            error, theirs_error = (
                float(cases.relative(X[rows].detach(), right).max()) for X in (ours, other)
            )
            # The limits are for norms up to two, and the condition number of e^A is at least ‖A‖.
            assert error < limit * max(1.0, float(torch.linalg.matrix_norm(A, 2).max()) / 2)
            assert error < 3 * theirs_error + 2 * torch.finfo(dtype).eps


def test_the_shortcut_and_the_route_give_the_same(shared):
    A = times(300)[:, None, None] * reversible(4)
    expected = neural_expm.expm(A, return_report=True)[0]
    assert torch.equal(neural_expm.expm(A), expected)
    assert torch.equal(neural_expm.expm(A.reshape(3, 100, 4, 4)).reshape(A.shape), expected)
    assert neural_expm.explain("expm", A).kernel == "eigenbasis"
    G = torch.randn(A.shape, dtype=A.dtype, generator=cases.generator())
    first, second = (A.clone().requires_grad_() for _ in range(2))
    (direct,) = torch.autograd.grad(neural_expm.expm(first), first, G)
    (routed,) = torch.autograd.grad(neural_expm.expm(second, return_report=True)[0], second, G)
    assert torch.equal(direct, routed)
    third = A.reshape(3, 100, 4, 4).clone().requires_grad_()
    (nested,) = torch.autograd.grad(neural_expm.expm(third), third, G.reshape(third.shape).mT.contiguous().mT)
    assert torch.equal(nested.reshape(A.shape), direct)


def test_the_report_promises_what_the_norms_do(shared):
    A = times()[:, None, None] * symmetric(6, 8.0)
    report = neural_expm.explain("expm", A)
    shared.setattr(one_parameter, "FEWEST", 10**9)
    each = neural_expm.explain("expm", A)
    assert each.kernel == "eager"
    assert report.bound_kind == "certified"
    assert float(report.bound.max()) <= 4 * float(each.bound.max())


def test_nearly_multiples_are_none(shared):
    """What differs in one entry by more than rounding is answered as ever, and right."""
    A = times()[:, None, None] * symmetric(6)
    eps = torch.finfo(A.dtype).eps

    def answered(B: Tensor) -> str:
        value, report = neural_expm.expm(B, return_report=True)
        torch.testing.assert_close(value, torch.linalg.matrix_exp(B), rtol=1e-12, atol=1e-12, equal_nan=True)
        torch.testing.assert_close(neural_expm.expm(B), value, rtol=1e-12, atol=1e-12, equal_nan=True)
        return report.kernel

    assert answered(A) == "eigenbasis"
    for row in (0, 1, 60, COUNT - 1):
        for change in (1.0 + 4 * ROUNDINGS * eps, 1.0 + 1e-9, -1.0, 0.0, torch.nan):
            B = A.clone()
            B[row, 2, 3] *= change
            assert answered(B) == "eager"
    B = A.clone()
    B[:, 0, 1] = 0.0  # a zero that one matrix has not
    B[7, 0, 1] = 1e-300
    assert multiples_of(B, torch.empty_like(B)) is None
    B[7, 0, 1] = 0.0
    assert multiples_of(B, torch.empty_like(B)) is not None
    assert multiples_of(torch.zeros_like(A), B) is None
    assert not one_parameter.worthwhile(A.mT, False)  # strides: the others take any


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_that_is_not_finite_leaves_the_others_alone(shared, bad):
    A = times()[:, None, None] * symmetric(6)
    expected = neural_expm.expm(A)
    for row in (0, 1, 50, COUNT - 1):
        B = A.clone()
        B[row] *= bad
        value = neural_expm.expm(B)
        assert bool(value[row].isnan().all())
        others = torch.arange(COUNT) != row
        torch.testing.assert_close(value[others], expected[others], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "Q",
    [
        torch.tensor([[0.0, 1.0], [-1.0, 0.0]]),  # skew
        torch.tensor([[0.0, 1.0], [0.0, 0.0]]),  # defective
        torch.tensor([[-3.0, 2.0, 1.0], [1.0, -3.0, 2.0], [2.0, 1.0, -3.0]]),  # a cycle preferred one way
        torch.tensor([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [1.0, 0.0, -1.0]]),  # one way only
        chain(14, 3.0).float(),  # D from 1 to 3^6.5
        symmetric(6).float() * 25,  # norm 50
    ],
    ids=["skew", "defective", "irreversible", "one way", "badly conditioned", "large"],
)
def test_where_no_good_eigenbasis_is_known_the_network_answers(shared, Q):
    A = times().float()[:, None, None] * Q
    value, report = neural_expm.expm(A, return_report=True)
    assert report.kernel == "eager"
    exact = torch.linalg.matrix_exp(A.double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=float(exact.abs().max()) * 3e-5)


def test_derivatives_of_every_order(shared):
    """Numerical derivatives move a batch away from the multiples, where others answer."""
    A = (times(5)[:, None, None] * reversible(3)).requires_grad_()
    assert neural_expm.explain("expm", A).kernel == "eigenbasis"
    assert torch.autograd.gradcheck(neural_expm.expm, A, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(neural_expm.expm, A)


def test_transforms(shared):
    A = times(8)[:, None, None] * symmetric(3)
    E = torch.randn(A.shape, dtype=A.dtype, generator=cases.generator(2))
    _, tangent = torch.func.jvp(neural_expm.expm, (A,), (E,))
    _, expected = torch.func.jvp(torch.linalg.matrix_exp, (A,), (E,))
    torch.testing.assert_close(tangent, expected, rtol=1e-12, atol=1e-12)
    directions = torch.stack([E, 2 * E.mT, A])
    _, pull = torch.func.vjp(neural_expm.expm, A)
    _, pull_theirs = torch.func.vjp(torch.linalg.matrix_exp, A)
    got, wanted = (torch.func.vmap(lambda G, f=f: f(G)[0])(directions) for f in (pull, pull_theirs))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_a_hook_may_save_another_matrix(shared):
    """The derivative is taken where the saved tensor says, as it is of every other batch."""
    A = (times()[:, None, None] * symmetric(4)).requires_grad_()
    G = torch.ones_like(A)
    with torch.autograd.graph.saved_tensors_hooks(lambda X: X * 0.5, lambda X: X):
        value = neural_expm.expm(A)
    (got,) = torch.autograd.grad(value, A, G)
    half = (A.detach() * 0.5).requires_grad_()
    (expected,) = torch.autograd.grad(torch.linalg.matrix_exp(half), half, G)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_single_precision_stays_single(shared):
    A = (times()[:, None, None] * symmetric(8)).float()
    A = times().float()[:, None, None] * A[1] / A[1].abs().max()
    expected = neural_expm.expm(A)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(neural_expm.expm(A), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(neural_expm.expm(A), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_who_is_asked():
    """Few matrices, complex ones, and those that machine code serves well are not looked into."""

    def asked(count: int, n: int, dtype: torch.dtype, native: bool) -> bool:
        return one_parameter.worthwhile(torch.empty(count, n, n, dtype=dtype), native)

    assert asked(8000, 4, torch.float64, False)
    assert not asked(8000, 4, torch.float64, True)
    assert asked(200, 61, torch.float64, True)
    assert not asked(200, 61, torch.float32, True)
    assert not asked(99, 100, torch.float64, False)
    assert not asked(8000, 8, torch.complex128, False)
    assert not asked(1000, 4, torch.float32, False)
    assert not asked(10**6, 1, torch.float32, False)


# --- the eigenbasis ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATORS)
def test_an_eigenbasis_is_one_to_its_last_digits(name):
    """Refined: beyond LAPACK's own accuracy by far, except among eigenvalues that are the same."""
    Q = GENERATORS[name]
    basis = eigenbasis(Q.numpy())
    assert basis is not None
    wide = [np.asarray(X, dtype=np.longdouble) for X in basis[:3]]
    values, left, right = wide
    n, eps = len(Q), np.finfo(float).eps
    condition = np.linalg.norm(basis.left) * np.linalg.norm(basis.right) / n
    assert np.abs(left @ right - np.eye(n)).max() < 4 * condition * eps
    residual = np.abs(right * values @ left - Q.numpy()).max()
    assert residual < 4 * condition * eps * float(torch.linalg.matrix_norm(Q, 2)) * (1 if n < 20 else 2)


def test_no_subnormal_numbers_in_single_precision():
    """Eigenvectors of parts of a graph are zero elsewhere but for rounding, whose products would be."""
    Q = torch.block_diag(symmetric(5), 1e-3 * symmetric(7), -symmetric(4)).float().numpy()
    basis = eigenbasis(Q)
    assert basis is not None
    products = np.abs(basis.right.T[:, :, None] * basis.left[:, None])
    assert products[products > 0].min() > np.finfo(np.float32).tiny


@pytest.mark.parametrize("exponent", [*range(-16, -3), -300])
def test_refinement_leaves_what_is_near_alone(exponent):
    """Eigenvalues 1e-10 apart would ask for a long step, or for one that is all rounding."""
    gap = 10.0**exponent
    for seed in range(20):
        for values in ([-1.0, -1.0 + gap], [1.0, 1.0 + gap, 1.0 + 2 * gap, -2.0, -2.0 + gap, 3.0]):
            n = len(values)
            V = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=cases.generator(seed)))[
                0
            ].numpy()
            S = V * values @ V.T
            S = (S + S.T) / 2
            better, W = refined(S, *np.linalg.eigh(S))
            assert np.abs(W.T @ W - np.eye(n)).max() < 1e-15
            assert np.abs(W * better @ W.T - S).max() < 8e-15


def test_what_makes_a_matrix_symmetric():
    Q = chain(9).numpy()
    d = symmetrizing(Q)
    assert d is not None
    S = Q * d / d[:, None]
    np.testing.assert_allclose(S, S.T, rtol=1e-14)
    assert symmetrizing(np.array([[0.0, 1.0], [-1.0, 0.0]])) is None
    assert eigenbasis(chain(60, MOST_CONDITION ** (2 / 59) * 1.01).numpy()) is None
    assert eigenbasis(chain(60, MOST_CONDITION ** (2 / 59) * 0.99).numpy()) is not None
    assert eigenbasis(np.zeros((3, 3))) is not None


def test_a_result_is_let_go_of_with_its_graph(shared):
    import gc
    import weakref

    A = (times()[:, None, None] * symmetric(6)).requires_grad_()
    gc.disable()
    try:
        value = neural_expm.expm(A)
        gone = weakref.ref(value)
        value += 1.0  # a result like any other, to be changed in place
        del value
        assert gone() is None
    finally:
        gc.enable()
