"""A few plain matrices go straight to a native kernel: what the route would have answered, and only those do."""

from __future__ import annotations

import pytest
import torch
from assembled_cases import needs_code
from compiled_cases import double, matrices, needs_compiler

import neural_expm
from neural_expm import functions, shortcut
from neural_expm.kernels import assembled, native
from neural_expm.kernels.calling import BOUND

pytestmark = needs_compiler
CASES = [((3, 3), torch.float32), ((7, 3, 3), torch.float32), ((2, 2, 5, 5), torch.complex128)]


@pytest.fixture(params=["compiled", pytest.param("assembled", marks=needs_code), "eager"])
def kernel(request):
    """Which kernel there is."""
    request.getfixturevalue("ready" if request.param == "compiled" else "fresh")
    patch = request.getfixturevalue("monkeypatch")
    if request.param != "compiled":
        patch.setenv("NEURAL_EXPM_COMPILE", "0")
        patch.setenv("NEURAL_EXPM_ASSEMBLE", "1" if request.param == "assembled" else "0")
        assembled.forget()
    return request.param


@pytest.fixture
def routed(kernel, monkeypatch):
    """The functions whose calls took the route."""
    for (*_, n), dtype in CASES:
        neural_expm.expm(torch.zeros(1, n, n, dtype=dtype))
    taken: list[str] = []
    route = functions._apply

    def noted(function, A, *options):
        taken.append(function)
        return route(function, A, *options)

    monkeypatch.setattr(functions, "_apply", noted)
    return taken


def example(shape, dtype):
    return matrices(shape[:-2].numel(), shape[-1], dtype).reshape(shape)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_the_answer_and_the_derivatives_of_the_route(kernel, routed, shape, dtype):
    A = example(torch.Size(shape), dtype)
    value = neural_expm.expm(A)
    assert not routed
    expected, report = neural_expm.expm(A, return_report=True)
    assert routed == ["expm"]
    assert report.kernel == kernel
    # The route may compute some matrices of a batch less deeply than others.
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-13, "atol": 1e-12}
    torch.testing.assert_close(value, expected, **close)
    del routed[:]
    B, G = A.clone().requires_grad_(), example(torch.Size(shape), dtype).flip(-1)
    first, *second = derivatives(neural_expm.expm, B, G)
    assert not routed
    expected, *others = derivatives(lambda X: neural_expm.expm(X, return_report=True)[0], B, G)
    torch.testing.assert_close(first, expected, **close)
    torch.testing.assert_close(second, others, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        first, derivatives(torch.linalg.matrix_exp, double(B), double(G))[0].to(dtype), rtol=1e-4, atol=1e-3
    )


def derivatives(function, A, G):
    A = A.detach().requires_grad_()
    value = function(A)
    (gradient,) = torch.autograd.grad(value, A, G, create_graph=True)
    (second,) = torch.autograd.grad(gradient.abs().square().sum(), A)
    return gradient.detach(), second


def test_gradient_of_an_expanded_sum(routed):
    A = example(torch.Size((4, 3, 3)), torch.float32).requires_grad_()
    (got,) = torch.autograd.grad(neural_expm.expm(A).sum(), A)
    wide = A.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(torch.linalg.matrix_exp(wide).sum(), wide)
    assert not routed
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scale", [1e30, torch.inf, torch.nan])
def test_a_matrix_outside_takes_the_route(routed, scale):
    A = example(torch.Size((4, 3, 3)), torch.float32)
    A[2] = -torch.eye(3) * scale
    B = A.clone().requires_grad_()
    value = neural_expm.expm(B)
    assert not routed  # the evaluator asks the route, not the function
    torch.testing.assert_close(
        value.detach(), torch.linalg.matrix_exp(A), equal_nan=True, rtol=1e-5, atol=1e-5
    )
    (gradient,) = torch.autograd.grad(value[[0, 1, 3]].sum(), B)
    assert bool(torch.isfinite(gradient[[0, 1, 3]]).all())
    torch.testing.assert_close(neural_expm.expm(A), value.detach(), equal_nan=True)
    assert routed


def test_parameters_and_no_grad(routed):
    W = torch.nn.Parameter(example(torch.Size((3, 3)), torch.float32))
    assert neural_expm.expm(W).requires_grad
    with torch.no_grad():
        assert not neural_expm.expm(W).requires_grad
    with torch.inference_mode():
        assert neural_expm.expm(W.detach()).is_inference()
    assert not routed


def test_what_is_not_plain_takes_the_route(routed):
    A = example(torch.Size((4, 3, 3)), torch.float32)
    expected = neural_expm.expm(A)
    assert not routed
    calls = (
        lambda: neural_expm.expm(A.mT).mT,
        lambda: neural_expm.expm(A, outside="nan"),
        lambda: neural_expm.expm(A, rtol=1e-6),
        lambda: neural_expm.expm(A, model="expm-equivariant"),
        lambda: neural_expm.expm(A.half()).float(),
        lambda: torch.func.vmap(neural_expm.expm)(A),
        lambda: torch.func.jvp(neural_expm.expm, (A,), (A,))[0],
        lambda: neural_expm.expm(torch._neg_view(-A)),
    )
    for asked, call in enumerate(calls, 1):
        torch.testing.assert_close(call(), expected, rtol=1e-2, atol=1e-2)
        assert len(routed) >= asked
    for bad in (
        [[1.0]],
        torch.ones(3),
        torch.ones(2, 3),
        torch.ones(2, 2, dtype=torch.int64),
        torch.eye(3).to_sparse(),
    ):
        with pytest.raises(neural_expm.NeuralExpmError):
            neural_expm.expm(bad)


def test_lazily_zero_tensors_have_no_memory_to_read(routed):
    A = example(torch.Size((4, 3, 3)), torch.float32).requires_grad_()
    zero = torch._efficientzerotensor((4, 3, 3))
    assert torch.equal(torch.autograd.grad(neural_expm.expm(A), A, zero)[0], torch.zeros(4, 3, 3))
    assert torch.equal(neural_expm.expm(zero), torch.eye(3).expand(4, 3, 3))


def test_what_is_bound_is_forgotten_with_the_kernels_and_never_grows_beyond_its_limit(routed, monkeypatch):
    monkeypatch.setattr(shortcut, "SHAPES", 3)
    for count in range(1, 8):
        A = example(torch.Size((count, 3, 3)), torch.float32)
        for _ in range(2):
            neural_expm.expm(A)
        assert (A.shape, A.dtype) in BOUND
        assert len(BOUND) <= 3
    assert not routed
    assembled.forget()
    assert not BOUND


def test_a_kernel_that_has_just_been_compiled_takes_over(ready, monkeypatch):
    monkeypatch.setenv("NEURAL_EXPM_COMPILE", "1")
    monkeypatch.setenv("NEURAL_EXPM_ASSEMBLE", "1")
    assembled.forget()
    A = example(torch.Size((7, 3, 3)), torch.float32)
    for _ in range(3):
        neural_expm.expm(A)
    assert "compiled" in BOUND[A.shape, A.dtype].bound.value.__module__


def test_nothing_is_bound_while_another_kernel_may_come(kernel, routed, monkeypatch):
    monkeypatch.setattr(native, "settled", lambda *_: False)
    A = example(torch.Size((3, 3)), torch.float32)
    BOUND.clear()
    torch.testing.assert_close(
        neural_expm.expm(A), torch.linalg.matrix_exp(A.double()).float(), rtol=1e-5, atol=1e-4
    )
    assert not BOUND
    assert routed == (["expm"] if kernel == "eager" else [])


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_weights_loaded_elsewhere_leave_what_is_bound_alone(kernel, routed, shape, dtype):
    A = 4 * example(torch.Size(shape), dtype)
    for _ in range(2):
        value, *derivative = derivatives(neural_expm.expm, A, A)
    for name in ("expm-equivariant-float32", "expm-equivariant-float64"):
        neural_expm.load(name).load_state_dict(neural_expm.load(name).state_dict())
    neural_expm.expm(A, return_report=True)  # makes the rungs anew
    noise = [torch.full((k,), torch.nan, dtype=torch.float64) for k in range(1, 60) for _ in range(20)]
    again, *after = derivatives(neural_expm.expm, A, A)
    assert torch.equal(again, value)
    torch.testing.assert_close(after, derivative, rtol=1e-6, atol=1e-3)
    assert noise


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_cotangents_however_they_lie(routed, shape, dtype):
    A, G = example(torch.Size(shape), dtype), example(torch.Size(shape), dtype).flip(-1)
    lying = [G.mT.contiguous().mT, G[..., :1].expand_as(G), torch.stack([G, G], -1)[..., 1]]
    if dtype.is_complex:
        lying += [G.conj(), G.mT.contiguous().mH.mT.resolve_conj()]
    for E in lying:
        got = derivatives(neural_expm.expm, A, E)[0]
        expected = derivatives(torch.linalg.matrix_exp, double(A), double(E))[0].to(dtype)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    assert not routed


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize(
    "unpack",
    [
        lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
        lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
        lambda x: x.mT.contiguous().mT,
        lambda x: torch._neg_view(-x),
        lambda x: x.clone(),
    ],
)
def test_hooks_that_save_the_argument_in_another_layout(kernel, routed, unpack, shape, dtype):
    A = example(torch.Size(shape), dtype).requires_grad_()
    (expected,) = torch.autograd.grad(neural_expm.expm(A).abs().sum(), A)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach(), unpack):
        value = neural_expm.expm(A)
    (got,) = torch.autograd.grad(value.abs().sum(), A)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_a_loaded_network_is_a_copy(routed):
    A = example(torch.Size((4, 3, 3)), torch.float32)
    expected = neural_expm.expm(A)
    network = neural_expm.load("expm-equivariant-float32")
    network.load_state_dict({key: 0 * tensor for key, tensor in network.state_dict().items()})
    assert not network(A).any()
    assert torch.equal(neural_expm.expm(A), expected)
    assert not routed


def test_a_large_batch_with_a_matrix_outside_is_computed_twice_once(routed, monkeypatch):
    monkeypatch.setattr(shortcut, "ONCE", 50)
    few, many = (example(torch.Size((count, 3, 3)), torch.float32) for count in (5, 60))
    for A in (few, many):
        A[1] *= 1e5
        truth = torch.linalg.matrix_exp(A[2:].double()).float()
        for _ in range(2):
            torch.testing.assert_close(neural_expm.expm(A)[2:], truth, rtol=1e-5, atol=1e-4)
    assert len(routed) == 4
    assert BOUND[few.shape, few.dtype]
    assert BOUND[many.shape, many.dtype] is False
    many[1] = 0
    B = many.clone().requires_grad_()
    neural_expm.expm(B).sum().backward()
    assert len(routed) == 5


def test_scalars_take_no_route(routed):
    for dtype in (torch.float32, torch.complex128):
        A = example(torch.Size((7, 1, 1)), dtype)
        torch.testing.assert_close(neural_expm.expm(A), torch.linalg.matrix_exp(A))
    leaf = A.clone().requires_grad_()
    (slope,) = torch.autograd.grad(neural_expm.expm(leaf).abs().sum(), leaf, create_graph=True)
    assert torch.autograd.grad(slope.abs().sum(), leaf)[0].isfinite().all()
    assert not routed
    limits = torch.tensor([torch.inf, -torch.inf, 1e4, torch.nan])[:, None, None]
    expected = torch.tensor([torch.inf, 0, torch.inf, torch.nan])[:, None, None]
    assert torch.equal(neural_expm.expm(limits).nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    value, report = neural_expm.expm(limits, return_report=True)
    assert torch.equal(value.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    assert not report.inside.any()


@pytest.mark.parametrize("n", [1, 129])
def test_sizes_that_no_native_kernel_serves_wait_for_none(fresh, n):
    A = torch.eye(n)[None] / n
    assert native.settled(A, "expm")
    BOUND.clear()
    neural_expm.expm(A)
    assert (A.shape, A.dtype) in BOUND
