"""When the Triton kernels answer: asked for, checked, and never in the way; on the CPU, by Triton's interpreter."""

from __future__ import annotations

import logging

import pytest
import torch
from triton_cases import DEVICE, QUIET

import neural_expm
from neural_expm import kernels
from neural_expm.kernels.triton import arithmetic as triton_arithmetic
from neural_expm.kernels.triton import operators as triton_operators
from neural_expm.kernels.triton import route as triton_route

FUNCTIONS = ["expm", "sign", "sqrtm"]
pytestmark = QUIET


@pytest.fixture(autouse=True)
def asked(monkeypatch, no_assembler):
    """The kernels are asked for, and may run on the device of the tests."""
    monkeypatch.setenv("NEURAL_EXPM_TRITON", "1")
    monkeypatch.setattr(triton_route, "DEVICES", (DEVICE.type,))
    triton_route.forget()
    yield monkeypatch
    triton_route.forget()


def matrices(function: str, dtype: torch.dtype = torch.float64, n: int = 2) -> torch.Tensor:
    """Seven that every kernel should take."""
    return triton_route.samples(function, n, dtype)[0][:7].to(DEVICE)


def both(asked, function: str, A: torch.Tensor, **options) -> list[tuple]:
    """Value, gradient and report by the eager kernel, then by the Triton one."""
    results = []
    for wanted in ("0", "1"):
        asked.setenv("NEURAL_EXPM_TRITON", wanted)
        B = A.clone().requires_grad_()
        value, report = getattr(neural_expm, function)(B, return_report=True, **options)
        (gradient,) = torch.autograd.grad(value[report.inside].abs().sum(), B)
        results.append((value.detach(), gradient, report))
    return results


@pytest.mark.parametrize(
    ("function", "dtype", "outside"),
    [
        ("expm", torch.float64, "trust"),
        ("expm", torch.complex64, "exact"),
        ("sign", torch.float64, "exact"),
        ("sqrtm", torch.complex64, "trust"),
    ],
)
def test_asked_for_they_answer_as_the_eager_kernel_does(asked, function, dtype, outside):
    (expected, expected_gradient, other), (value, gradient, report) = both(
        asked, function, matrices(function, dtype), outside=outside
    )
    assert (report.kernel, other.kernel) == ("triton", "eager")
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance)
    assert report.inside.all()
    assert bool((report.bound <= 1e-5).all()) == (outside != "trust")
    assert bool((report.products > 0).all())
    assert "triton kernel" in str(neural_expm.explain(function, matrices(function, dtype)))
    assert "ready" in triton_route.state().values()


def test_the_bound_is_that_of_the_tier_which_a_matrix_got():
    A = matrices("expm")
    A[0], A[1] = 1e-6 * A[0], 20 * A[1] / A[1].norm()
    _, report = neural_expm.expm(A, return_report=True)
    assert bool((report.products == report.products[0]).all())  # neighbours share the deepest tier
    assert report.squarings[0] == 0 < report.squarings[1]
    assert 0 < report.bound[0] < report.bound[1] < 1e-13


@pytest.mark.parametrize("function", FUNCTIONS)
def test_rows_outside_go_to_the_exact_algorithm(asked, function):
    A = matrices(function)
    A[2, 0, 1] = torch.nan
    # Too large; eigenvalues that the certificate does not reach.
    far = {"expm": [[450.0, 0.0], [450.0, 0.0]], "sign": [[0.01, -1.0], [1.0, 0.01]]}
    far["sqrtm"] = [[-1.0, -0.05], [0.05, -1.0]]
    A[4] = torch.tensor(far[function], dtype=A.dtype, device=DEVICE)
    expected, ours = both(asked, function, A, outside="nan")
    assert ours[2].code.tolist() == expected[2].code.tolist()
    assert ours[2].inside.tolist() == [True, True, False, True, False, True, True]
    assert ours[0].isnan().flatten(1).all(1).tolist() == (~ours[2].inside).tolist()
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-10, atol=1e-10, equal_nan=True)
    if function == "expm":
        return
    exactly = getattr(neural_expm, function)(A[3:5])[1]
    square = A[4] if function == "sqrtm" else torch.eye(2, dtype=A.dtype, device=DEVICE)
    torch.testing.assert_close(exactly @ exactly, square, rtol=1e-9, atol=1e-9)


def test_they_do_not_answer_unless_asked_nor_where_they_cannot(asked):
    network = neural_expm.load("expm-equivariant", torch.float64)
    A = matrices("expm")
    assert triton_route.find(A, network) is not None
    assert triton_route.find(A[:, :1, :1], network) is None
    assert triton_route.find(torch.zeros(1, 33, 33, dtype=torch.float64, device=DEVICE), network) is None
    assert triton_route.find(torch._neg_view(A), network) is None
    _, report = neural_expm.expm(A, rtol=1e-3, return_report=True)
    assert report.kernel == "eager"  # a tier shared by neighbours might break the promise
    asked.setattr(triton_route, "DEVICES", ("cuda",) if DEVICE.type == "cpu" else ("cpu",))
    assert triton_route.find(A, network) is None
    asked.setattr(triton_route, "DEVICES", (DEVICE.type,))
    asked.delenv("NEURAL_EXPM_TRITON")
    assert triton_route.find(A, network) is None


def eager_answers(caplog) -> None:
    """The eager kernel answers rightly, and one message says so however often it is asked."""
    for function in FUNCTIONS:
        for n in (2, 3) if function == "expm" else (2,):
            A = matrices(function, n=n).requires_grad_()
            value, report = getattr(neural_expm, function)(A, return_report=True)
            (gradient,) = torch.autograd.grad(value.sum(), A)
            assert report.kernel == "eager"
            assert gradient.isfinite().all()
    said = [record.getMessage() for record in caplog.records if "eager kernel answers" in record.getMessage()]
    assert len(said) == 1, said
    assert set(triton_route.state().values()) == {"failed"}


def test_a_kernel_that_is_wrong_is_refused(asked, caplog):
    for operator in triton_operators.OPERATORS.values():
        right = operator.compute

        def wrong(A, table, out, right=right):
            notes = right(A, table, out)
            out[-1, 0, 0] *= 1.001
            return notes

        asked.setattr(operator, "compute", wrong)
    with caplog.at_level(logging.WARNING, "neural_expm"):
        eager_answers(caplog)
    assert "relative error" in caplog.text


def test_a_kernel_whose_derivative_is_wrong_is_refused(asked):
    operator = triton_operators.OPERATORS["expm"]
    asked.setattr(operator, "derive", lambda A, E, table, out: out.copy_(E))
    _, report = neural_expm.expm(matrices("expm"), return_report=True)
    assert report.kernel == "eager"


def failing(*arguments, **options):
    """As a launch on a GPU that is too old."""
    raise RuntimeError("no kernel image is available")


def test_a_launch_that_fails_is_caught(asked, caplog):
    from neural_expm.kernels.triton import composition as triton_composition
    from neural_expm.kernels.triton import exponential as triton_exponential

    for module in (triton_composition, triton_exponential):
        asked.setattr(module, "launch", failing)
    with caplog.at_level(logging.WARNING, "neural_expm"):
        eager_answers(caplog)
    assert "no kernel image" in caplog.text


def test_a_launch_that_fails_after_the_check_is_caught(asked):
    from neural_expm.kernels.triton import exponential as triton_exponential

    A = matrices("expm").requires_grad_()
    value, report = neural_expm.expm(A, return_report=True)
    assert report.kernel == "triton"
    asked.setattr(triton_exponential, "launch", failing)
    (gradient,) = torch.autograd.grad(value.sum(), A)  # the plan of one kernel serves the other
    expected = torch.linalg.matrix_exp(A)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), A)[0])
    value, report = neural_expm.expm(A, return_report=True)
    assert report.kernel == "eager"
    torch.testing.assert_close(value, expected)


def test_without_triton_the_eager_kernel_answers(asked, caplog):
    asked.setitem(__import__("sys").modules, "neural_expm.kernels.triton.operators", None)
    with caplog.at_level(logging.WARNING, "neural_expm"):
        eager_answers(caplog)


def test_what_is_available_says_so(asked):
    neural_expm.expm(matrices("expm"))
    assert "expm n = 2 float64" in kernels.available()["triton"]
    asked.delenv("NEURAL_EXPM_TRITON")
    assert "NEURAL_EXPM_TRITON=1" in kernels.available()["triton"]


@pytest.mark.parametrize("function", ["expm", "sqrtm"])
def test_a_compiled_program_calls_the_operator(asked, function):
    def model(A):
        return getattr(neural_expm, function)(A, outside="trust").sum()

    seen = []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if "neural_expm" in str(node.target))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    for n in (2, 3):
        compiled(matrices(function, n=n))
    assert seen == [f"neural_expm.{function}"] * 2
    A, B = (matrices(function).requires_grad_() for _ in range(2))
    torch.compile(model, fullgraph=True, backend="aot_eager")(A).backward()
    model(B).backward()
    torch.testing.assert_close(A.grad, B.grad)
    seen.clear()
    asked.setenv("NEURAL_EXPM_TRITON", "0")
    torch._dynamo.reset()
    torch.compile(model, fullgraph=True, backend=backend)(A)
    assert not seen


def test_the_size_limit_is_that_of_the_kernels():
    assert triton_route.LARGEST_N == triton_arithmetic.LARGEST_N
