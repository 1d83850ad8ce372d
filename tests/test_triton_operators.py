"""The Triton kernels as operators of torch: registered rightly, differentiable, one node in a compiled graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_cases import DEVICE

import neural_expm
from neural_expm.kernels.rules import numbers
from neural_expm.kernels.triton.operators import OPERATORS

FUNCTIONS = ["expm", "sign", "sqrtm"]


def parameters(function: str) -> tuple:
    """Of the operators of a function, for the shipped network."""
    return numbers(neural_expm.load(f"{function}-equivariant", torch.float64).rules(torch.float64))


def matrices(*batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Well-conditioned 2 × 2 ones, with eigenvalues near 1 and −0.5."""
    generator = torch.Generator().manual_seed(len(batch))
    A = 0.1 * torch.randn(*batch, 2, 2, dtype=dtype, generator=generator)
    return (A + torch.diag(torch.tensor([1.0, -0.5], dtype=dtype))).to(DEVICE)


def suited(function: str, A: Tensor) -> Tensor:
    """A, with its eigenvalues in the right half-plane for sqrtm."""
    return A @ A if function == "sqrtm" else A


@pytest.mark.parametrize("function", ["expm", "sqrtm"])  # sign is registered by the same lines as sqrtm
def test_registration(function):
    A = suited(function, matrices(2, 1)).requires_grad_()
    operator, numbers_ = OPERATORS[function], parameters(function)
    torch.library.opcheck(operator.value, (A, *numbers_))
    # The derivative's own derivative is compared below; tracing it here as well takes the interpreter long.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator.frechet, (A, A.detach(), *numbers_), test_utils=checks)


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        ("expm", torch.complex128),
        ("sign", torch.float64),
        ("sqrtm", torch.complex128),
    ],
)
def test_first_and_second_derivatives(function, dtype):
    operator, numbers_ = OPERATORS[function], parameters(function)
    value, *notes = operator.value(suited(function, matrices(2, dtype=dtype)), *numbers_)
    assert all(note.shape == value.shape[:-2] and not note.requires_grad for note in notes)
    results = []
    for f in (lambda A: operator.value(A, *numbers_)[0], getattr(neural_expm, function)):
        A = suited(function, matrices(2, dtype=dtype)).requires_grad_()
        weights = torch.arange(8, device=DEVICE).reshape(2, 2, 2).to(dtype)
        (first,) = torch.autograd.grad((f(A) * weights).sum().abs(), A, create_graph=True)
        (second,) = torch.autograd.grad((first * weights.flip(0)).sum().abs(), A)
        results.append((f(A).detach(), first.detach(), second))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_vmap(function):
    operator, numbers_ = OPERATORS[function], parameters(function)
    A, E = suited(function, matrices(3, 2)), matrices(2)
    along = torch.func.vmap(lambda X: operator.value(X, *numbers_)[:2], in_dims=1)
    value, note = operator.value(A.transpose(0, 1), *numbers_)[:2]
    torch.testing.assert_close(along(A), (value, note))
    frechet = torch.func.vmap(lambda X, Y: operator.frechet(X, Y, *numbers_), in_dims=(0, None))
    torch.testing.assert_close(frechet(A, E), operator.frechet(A, E.expand(3, 2, 2, 2), *numbers_))
    A.requires_grad_()
    (gradient,) = torch.autograd.grad(along(A)[0].sum(), A)
    torch.testing.assert_close(gradient, operator.frechet(A.mT, torch.ones_like(A), *numbers_))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_graph_holds_one_node(backend):
    numbers_ = {function: parameters(function) for function in FUNCTIONS}

    def model(A: Tensor) -> Tensor:
        squared = A @ A
        total = torch.ops.neural_expm.expm(A, *numbers_["expm"])[0]
        total = total + torch.ops.neural_expm.sign(A, *numbers_["sign"])[0]
        return (total * torch.ops.neural_expm.sqrtm(squared, *numbers_["sqrtm"])[0]).sum()

    A, B = matrices(2).requires_grad_(), matrices(2).requires_grad_()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    compiled(A).backward()
    model(B).backward()
    torch.testing.assert_close(A.grad, B.grad)
    graph = torch.fx.experimental.proxy_tensor.make_fx(model, tracing_mode="fake")(A.detach())
    ours = [node.target.name() for node in graph.graph.nodes if "neural_expm" in str(node.target)]
    assert ours == ["neural_expm::expm", "neural_expm::sign", "neural_expm::sqrtm"]


def test_an_empty_batch():
    A = matrices(0)
    for function in FUNCTIONS:
        value, *notes = OPERATORS[function].value(A, *parameters(function))
        assert value.shape == A.shape
        assert all(note.shape == (0,) for note in notes)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: graphs are captured there")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_launch_can_be_captured_in_a_cuda_graph(function):
    operator, numbers_ = OPERATORS[function], parameters(function)
    A = suited(function, matrices(64))
    expected = operator.value(A, *numbers_)[0]  # compiles, and copies the numbers to the device
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = operator.value(A, *numbers_)[0]
    value.fill_(torch.nan)
    graph.replay()
    torch.testing.assert_close(value, expected)
