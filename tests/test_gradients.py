"""Derivatives: gradcheck, truth in float64, torch.func, compilation, export, and the memory of a backward pass."""

from __future__ import annotations

import math

import cases
import pytest
import torch
from assembled_cases import WIDTHS
from torch.autograd import gradcheck, gradgradcheck

import neural_expm
from neural_expm import exact
from neural_expm.kernels import assembled

F = torch.func


def _well_split(n: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A matrix whose sign and square root are well conditioned and inside the certified set."""
    noise = 0.15 * torch.randn(n, n, dtype=dtype, generator=cases.generator(seed))
    return torch.diag(torch.tensor([1.0, 2.0, 1.5, 0.8, 1.2][:n], dtype=dtype)) + noise


FUNCTIONS = {
    "expm": neural_expm.expm,
    "sign": lambda A: neural_expm.sign(A @ torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=A.dtype))),
    "sqrtm": neural_expm.sqrtm,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_first_and_second_derivatives(name, dtype):
    A = torch.stack([_well_split(3, seed, dtype) for seed in range(2)]).requires_grad_()
    assert gradcheck(FUNCTIONS[name], (A,), check_forward_ad=True)
    assert gradgradcheck(FUNCTIONS[name], (A,))


@pytest.mark.parametrize("assemble", ["0", "1"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_several_cotangents_at_once(monkeypatch, name, assemble):
    """By torch's older vmap, which stands behind ``is_grads_batched`` and ``vectorize``; the first calls of kernels."""
    monkeypatch.setenv("NEURAL_EXPM_ASSEMBLE", assemble)
    assembled.forget()
    function, A = FUNCTIONS[name], torch.stack([_well_split(3, seed) for seed in range(2)])
    jacobian = torch.autograd.functional.jacobian(function, A, vectorize=True)
    torch.testing.assert_close(jacobian, F.jacrev(function)(A))

    def total(X):
        return function(X).square().sum()

    hessian = torch.autograd.functional.hessian(total, A, vectorize=True)
    torch.testing.assert_close(hessian, F.hessian(total)(A))
    assert gradcheck(function, A.clone().requires_grad_(), check_batched_grad=True)
    assert set(assembled.state().values()) <= {"ready" if assemble == "1" and WIDTHS else "none"}
    assembled.forget()


@pytest.mark.parametrize("name", ["expm", "sign", "sqrtm"])
def test_derivatives_through_the_exact_path(name):
    # The first matrix goes to the network, the second one (large, or with eigenvalues near the axis) to the exact path.
    rotation = torch.tensor([[0.2, 4.0, 0.0], [-4.0, 0.2, 0.0], [0.0, 0.0, -3.0]], dtype=torch.float64)
    outside = {
        "expm": 400.0 * torch.eye(3, dtype=torch.float64),
        "sign": rotation,
        "sqrtm": rotation @ rotation,
    }
    A = torch.stack([_well_split(3, 0), outside[name]]).requires_grad_()
    function = getattr(neural_expm, name)
    report = function(A, return_report=True)[1]
    assert report.inside.tolist() == [True, False]
    if name == "expm":  # e^400 has no finite difference to compare with
        G = torch.ones_like(A)
        (gradient,) = torch.autograd.grad(function(A), A, G)
        truth = exact.expm_frechet(A.detach().mT, G)
        assert cases.relative(gradient, truth).max() < 1e-11
        return
    assert gradcheck(function, (A,), check_forward_ad=True)
    assert gradgradcheck(function, (A,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 4, 7, 20])
def test_gradient_of_expm_against_float64_truth(n, dtype):
    A = cases.ginibre(n, 80, seed=n).to(dtype).requires_grad_()
    G = torch.randn(A.shape, dtype=dtype, generator=cases.generator(1))
    (gradient,) = torch.autograd.grad(neural_expm.expm(A), A, G)
    truth = exact.expm_frechet(A.detach().double().mT, G.double())
    assert cases.relative(gradient, truth).max() <= cases.GRADIENT[dtype]


def test_transforms_agree_with_torch_and_with_each_other():
    a = _well_split(3, 4)
    ours, theirs = neural_expm.expm, torch.linalg.matrix_exp
    assert torch.allclose(F.jacrev(ours)(a), F.jacrev(theirs)(a), atol=1e-12)
    assert torch.allclose(F.jacfwd(ours)(a), F.jacrev(theirs)(a), atol=1e-12)

    def scalar(function):
        return lambda x: function(x).sin().sum()

    assert torch.allclose(F.grad(scalar(ours))(a), F.grad(scalar(theirs))(a), atol=1e-11)
    assert torch.allclose(F.hessian(scalar(ours))(a), F.hessian(scalar(theirs))(a), atol=1e-10)
    B = torch.stack([torch.stack([_well_split(3, 10 * i + j) for j in range(2)]) for i in range(4)])
    # In-dimensions on purpose unlike the order of the batch.
    nested = F.vmap(F.vmap(F.grad(scalar(ours)), in_dims=0), in_dims=1)(B)
    assert torch.allclose(
        nested, torch.stack([F.vmap(F.grad(scalar(theirs)))(B[:, j]) for j in range(2)]), atol=1e-11
    )
    assert torch.allclose(F.vmap(ours, in_dims=2)(B.permute(2, 3, 0, 1)[..., 0]), ours(B[:, 0]), atol=1e-13)


def test_vmap_of_sizes_that_coincide_does_not_mix_plans():
    # Three matrices of very different norms, and a Jacobian whose vmap has batches of three as well.
    A = torch.stack([_well_split(3, s) * scale for s, scale in enumerate((1e-6, 1.0, 30.0))])
    J = F.vmap(F.jacrev(neural_expm.expm))(A)
    for i in range(3):
        truth = F.jacrev(torch.linalg.matrix_exp)(A[i])
        assert torch.linalg.vector_norm(J[i] - truth) <= 1e-12 * torch.linalg.vector_norm(truth)


@pytest.mark.parametrize("name", ["sign", "sqrtm"])
def test_transforms_of_sign_and_sqrtm(name):
    function = getattr(neural_expm, name)
    a = _well_split(3, 2)
    assert torch.allclose(F.jacrev(function)(a), F.jacfwd(function)(a), atol=1e-12)
    B = torch.stack([_well_split(3, s) for s in range(3)])
    assert torch.allclose(F.vmap(function)(B), function(B), atol=1e-13)


def test_compiled_as_one_graph():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda A: neural_expm.expm(A, outside="trust"), fullgraph=True, backend="aot_eager"
    )
    A = cases.ginibre(3, 6, radius=6.0).float().requires_grad_()
    (ours,) = torch.autograd.grad(compiled(A).sum(), A)
    (theirs,) = torch.autograd.grad(torch.linalg.matrix_exp(A.double()).sum(), A)
    assert torch.allclose(compiled(A), torch.linalg.matrix_exp(A), rtol=1e-4, atol=1e-4)
    assert torch.allclose(ours, theirs.float(), rtol=1e-3, atol=1e-2)
    beyond = 1e4 * torch.eye(3)[None]
    assert bool(compiled(beyond).isnan().all())
    for function in (neural_expm.sign, neural_expm.sqrtm):
        one = torch.compile(lambda A, f=function: f(A, outside="trust"), fullgraph=True, backend="aot_eager")
        B = _well_split(3, 0)[None]
        assert torch.allclose(one(B), function(B), atol=1e-12)


def test_exported_program_takes_any_batch():
    class Exponential(torch.nn.Module):
        def forward(self, A):
            return neural_expm.expm(A, outside="trust")

    batch = torch.export.Dim("batch")
    program = torch.export.export(
        Exponential(), (cases.ginibre(4, 5).float(),), dynamic_shapes={"A": {0: batch}}
    )
    A = cases.ginibre(4, 9, seed=2).float()
    assert torch.allclose(program.module()(A), torch.linalg.matrix_exp(A), atol=1e-5)


def test_a_loaded_network_is_a_frozen_differentiable_module():
    network = neural_expm.load("expm-equivariant", torch.float64)
    assert isinstance(network, torch.nn.Module)
    assert not network.training
    A = _well_split(3, 1).requires_grad_()
    network(A).sum().backward()
    assert A.grad is not None
    assert all(not p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6, 1e-9, 1e-12])
def test_the_derivative_of_sign_near_the_axis(distance):
    """Well conditioned for a normal matrix: eigenvalues on both sides lie far apart, however near the axis."""
    Q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=cases.generator(0)))[0]
    E = torch.randn(4, 4, dtype=torch.float64, generator=cases.generator(1))
    values = torch.tensor(
        [distance + 1j, distance - 1j, -distance + 0.5j, -distance - 0.5j], dtype=torch.complex128
    )
    blocks = torch.block_diag(
        *(torch.tensor([[v.real, v.imag], [-v.imag, v.real]], dtype=torch.float64) for v in values[::2])
    )
    A = Q @ blocks @ Q.mT
    derivative = F.jvp(neural_expm.sign, (A[None],), (E[None],))[1][0]
    # L = V ((sᵢ − sⱼ)/(λᵢ − λⱼ) ∘ V⁻¹EV) V⁻¹, with the eigenvectors of the blocks.
    turn = torch.tensor([[1, 1], [1j, -1j]], dtype=torch.complex128) / 2**0.5
    V = Q.to(torch.complex128) @ torch.block_diag(turn, turn)
    s = values.real.sign()
    apart = torch.where(s[:, None] != s, values[:, None] - values, 1.0)
    truth = (V @ ((s[:, None] - s) / apart * (V.mH @ E.to(V) @ V)) @ V.mH).real
    assert float(cases.relative(derivative[None], truth[None])) < 1e-12


@pytest.mark.parametrize("name", ["expm", "sign", "sqrtm"])
def test_second_derivatives_do_not_depend_on_the_size_of_the_cotangent(name):
    A = torch.stack([_well_split(3, 0), _well_split(3, 1)]).requires_grad_()
    G, E = (torch.randn(2, 3, 3, dtype=torch.float64, generator=cases.generator(i)) for i in (1, 2))

    def second(size: float) -> torch.Tensor:
        (slope,) = torch.autograd.grad(FUNCTIONS[name](A), A, G * size, create_graph=True)
        return torch.autograd.grad(slope, A, E)[0] / size

    truth = second(1.0)
    for size in (1e-100, 1e-8, 1e8, 1e100):
        assert float(cases.relative(second(size), truth).max()) < 1e-12


@pytest.mark.parametrize("name", ["expm", "sign", "sqrtm"])
def test_forward_mode_nested_three_and_four_deep(name):
    """The third and the fourth derivative along a line, beside a polynomial through values on it."""
    A, E = _well_split(3, 0), _well_split(3, 1) - torch.eye(3, dtype=torch.float64)
    function = FUNCTIONS[name]

    def along(f):
        return lambda X: F.jvp(f, (X,), (E,))[1]

    # Taylor coefficients of t ↦ f(A + tE) by the discrete Fourier transform on a small circle.
    circle = 0.05 * torch.exp(2j * torch.pi * torch.arange(32, dtype=torch.float64) / 32)
    values = function(A + circle[:, None, None] * E)
    coefficients = torch.fft.fft(values, dim=0).real / 32
    third = along(along(along(function)))
    for order, derivative in ((3, third(A)), (4, along(third)(A))):
        truth = coefficients[order] * math.factorial(order) / 0.05**order
        assert float(cases.relative(derivative[None], truth[None])) < 1e-7
    twice_forward = F.jacfwd(F.jacfwd(F.jacrev(lambda X: function(X).pow(2).sum())))(A)
    assert float(
        (twice_forward - F.jacrev(F.jacrev(F.jacrev(lambda X: function(X).pow(2).sum())))(A)).norm()
    ) < (1e-9 * float(twice_forward.norm()))


def test_the_gradient_outside_the_domain_does_not_depend_on_the_size_of_the_cotangent():
    noise = torch.randn(8, 8, dtype=torch.float64, generator=cases.generator(0))
    A, G = noise - noise.mT, torch.randn(8, 8, dtype=torch.float64, generator=cases.generator(1))
    A = A / A.norm() * 900

    def gradient(size: float) -> torch.Tensor:
        leaf = A.clone().requires_grad_()
        return torch.autograd.grad(neural_expm.expm(leaf), leaf, G * size)[0] / size

    assert not bool(neural_expm.explain("expm", A).inside)
    for size in (1e-200, 1e20, 1e200):
        assert float(cases.relative(gradient(size)[None], gradient(1.0)[None])) < 1e-13


def test_a_complex_matrix_at_a_real_checkpoint_has_a_gradient():
    A = (0.1 * cases.ginibre(3, 2, dtype=torch.complex64)).requires_grad_()
    G = torch.ones(2, 3, 3, dtype=torch.complex64)
    (ours,) = torch.autograd.grad(neural_expm.expm(A, model="expm-relu-n3-10k"), A, G)
    (theirs,) = torch.autograd.grad(torch.linalg.matrix_exp(A), A, G)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (4, 3, 3), (2, 2, 3, 3)])
@pytest.mark.parametrize("options", [{}, {"outside": "trust"}, {"return_report": True}])
def test_a_result_may_be_changed_in_place(shape, options):
    """As one of torch's: backward needs A, not the result."""
    for function in (neural_expm.expm, neural_expm.sign, neural_expm.sqrtm):
        A = torch.eye(shape[-1], dtype=torch.float64).expand(shape).clone()
        A = (A + 0.1 * torch.rand(shape, generator=cases.generator(0), dtype=torch.float64)).requires_grad_()
        results = [function(A, **options) for _ in range(2)]
        first, second = (X[0] if isinstance(X, tuple) else X for X in results)
        (expected,) = torch.autograd.grad(2 * first.sum(), A)
        (got,) = torch.autograd.grad(second.mul_(2).sum(), A)
        torch.testing.assert_close(got, expected)
