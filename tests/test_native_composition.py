"""Native sign and square root, compiled and assembled: the answers and reports of the eager kernel, and no more
certificates than it gives.
"""

from __future__ import annotations

import os
from pathlib import Path

import cases
import pytest
import torch
from assembled_cases import WIDTHS, before_a_wall

import neural_expm
from neural_expm import exact
from neural_expm.functions import _shipped
from neural_expm.kernels import assembled, compiled
from neural_expm.kernels.assembled import kernel as assembled_kernel
from neural_expm.kernels.compiled import toolchain
from neural_expm.kernels.composition_kernel import Course
from neural_expm.training import data

# What the tests compile: sizes that fill no register, both fields and both precisions.
KERNELS = [
    ("sign", 3, torch.float64),
    ("sign", 5, torch.complex128),
    ("sqrtm", 3, torch.float32),
    ("sqrtm", 5, torch.complex128),
]
# Relative error, in roundings: some thirty products, and a condition number of up to a hundred.
ROUNDINGS = 2000

needs_compiler = pytest.mark.skipif(
    not any(toolchain.shutil.which(name) for name in toolchain.COMPILERS), reason="no C++ compiler"
)
# How a native kernel is had; machine code for every width of registers that this processor has.
NATIVE = [
    pytest.param("compiled", marks=needs_compiler),
    *(pytest.param(f"assembled {'AVX-512' if wide else 'AVX2'}") for wide in WIDTHS),
]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Path:
    """A cache folder with KERNELS."""
    folder = tmp_path_factory.mktemp("kernels")
    os.environ["NEURAL_EXPM_KERNEL_CACHE"] = str(folder)
    for kind, n, dtype in KERNELS:
        source, defines, stem = compiled._recipe(kind, n, dtype)
        toolchain.build(source, defines, toolchain.library_path(source, defines, stem))
    del os.environ["NEURAL_EXPM_KERNEL_CACHE"]
    return folder


@pytest.fixture
def switch(request, monkeypatch):
    """Switches to a kernel of NATIVE or the eager one, as in a new process."""

    def to(name: str) -> None:
        if name == "compiled":
            monkeypatch.setenv("NEURAL_EXPM_KERNEL_CACHE", str(request.getfixturevalue("libraries")))
        monkeypatch.setenv("NEURAL_EXPM_COMPILE", "auto" if name == "compiled" else "0")
        monkeypatch.setenv("NEURAL_EXPM_ASSEMBLE", str(int(name.startswith("assembled"))))
        monkeypatch.setattr(assembled_kernel, "wide", lambda: "512" in name)
        if (memory := assembled_kernel._workspace.memory) is not None:
            memory.fill_(255)  # NaN: nothing is read before it is written
        compiled.forget()
        assembled.forget()

    yield to
    compiled.forget()
    assembled.forget()


@pytest.fixture(params=NATIVE)
def native(request, switch):
    """The name of a native kernel, which now answers."""
    switch(request.param)
    return request.param.split()[0]


def network(kind: str, dtype: torch.dtype):
    return _shipped(kind, None, None, dtype.to_real())[0]


def matrices(kind: str, count: int, n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """A third Hermitian, a third general and inside, a third with eigenvalues anywhere; some of them are refused."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    noise = torch.randn(count, n, n, dtype=wide, generator=g) / n**0.5
    signs = (1.0 - 2.0 * (torch.arange(n) % 2)) if kind == "sign" else torch.ones(n)
    A = torch.diag(signs).to(wide) + 0.2 * noise
    # So far apart that they take more than one pass.
    Q = torch.linalg.qr(noise[::3])[0]
    A[::3] = Q @ torch.diag(signs * torch.logspace(-2 if kind == "sign" else -3.5, 0, n)).to(wide) @ Q.mH
    A[::3] = A[::3] + A[::3].mH
    A[1::3] = noise[1::3]
    scale = torch.logspace(-2, 2, count, dtype=torch.float64)[torch.randperm(count, generator=g)]
    return (A * scale[:, None, None]).to(dtype)


def error(X: torch.Tensor, Y: torch.Tensor) -> float:
    """Largest relative Frobenius error, in roundings."""
    return float(cases.relative(X, Y).max()) / torch.finfo(X.dtype).eps


def gradient_error(X: torch.Tensor, truth: torch.Tensor, G: torch.Tensor) -> float:
    """As :func:`error`, beside the cotangent too: the derivative of sign at a definite matrix is zero."""
    size = torch.linalg.matrix_norm(truth) + torch.linalg.matrix_norm(G.to(truth.dtype))
    difference = torch.linalg.matrix_norm(X.to(truth.dtype) - truth)
    return float((difference / size).max()) / torch.finfo(X.dtype).eps


@pytest.mark.parametrize(("kind", "n", "dtype"), KERNELS)
@pytest.mark.parametrize("count", [1, 2, 17, 300])
def test_values_records_and_derivatives_are_those_of_the_eager_kernel(native, switch, kind, n, dtype, count):
    net, A = network(kind, dtype), matrices(kind, count, n, dtype)
    E = torch.randn(A.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    value, outcome = net.run(A)
    derivative = net.run_frechet(A, E, outcome)
    switch("eager")
    expected, eager = net.run(A)
    assert (outcome.kernel, eager.kernel) == (native, "eager")
    inside = eager.computed() > 0
    assert torch.equal(outcome.computed() > 0, inside)
    assert torch.equal(outcome.hermitian, eager.hermitian)
    assert torch.equal(outcome.passes[inside], eager.passes[inside])
    torch.testing.assert_close(outcome.scale, eager.scale)
    if count == 300:
        assert 0.4 < float(inside.double().mean()) < 1
        assert set(outcome.passes[inside].tolist()) > {1}
    assert error(value[inside], expected[inside]) < ROUNDINGS
    # The record of one kernel serves the other, and all four ways agree.
    for record in (outcome, eager):
        other = net.run_frechet(A, E, record)
        assert gradient_error(derivative[inside], other[inside], E[inside]) < 50 * ROUNDINGS
    for name, tensor in eager.describe().items():
        tolerance = {"rtol": 0, "atol": 1e-3 if name == "bound" else 0}
        torch.testing.assert_close(outcome.describe()[name][inside], tensor[inside], **tolerance)


@pytest.mark.parametrize(("kind", "n", "dtype"), KERNELS)
def test_values_and_gradients_are_true(native, kind, n, dtype):
    A = matrices(kind, 100, n, dtype)
    A = A[network(kind, dtype).run(A)[1].computed() > 0]
    G = torch.randn(A.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected, undefined = exact.VALUE[kind](A.to(wide))
    assert not bool(undefined.any())
    leaf = A.clone().requires_grad_()
    value, report = getattr(neural_expm, kind)(leaf, return_report=True)
    assert report.kernel == native
    assert bool(report.inside.all())
    assert error(value.detach(), expected) < ROUNDINGS
    (gradient,) = torch.autograd.grad(value, leaf, G)
    truth = exact.FRECHET[kind](A.to(wide).mH, G.to(wide))
    assert gradient_error(gradient, truth, G) < 50 * ROUNDINGS


@pytest.mark.parametrize(("kind", "n", "dtype"), KERNELS)
def test_a_result_depends_on_nothing_but_its_matrix(native, kind, n, dtype):
    net, A = network(kind, dtype), matrices(kind, 61, n, dtype)
    value, outcome = net.run(A)
    inside = outcome.computed() > 0
    order = torch.randperm(61, generator=torch.Generator().manual_seed(2))
    shuffled, moved = net.run(A[order])
    assert torch.equal(moved.passes, outcome.passes[order])
    assert torch.equal(moved.residual, outcome.residual[order])
    assert torch.equal(shuffled[inside[order]], value[order][inside[order]])
    for row in torch.nonzero(inside)[:3, 0].tolist():
        assert torch.equal(net.run(A[row : row + 1])[0][0], value[row])
    # Any strides.
    spread = torch.zeros(122, n, 2 * n, dtype=dtype)[::2, :, ::2].copy_(A)
    assert torch.equal(net.run(spread)[0][inside], value[inside])
    assert torch.equal(net.run(A.mT.contiguous().mT)[0][inside], value[inside])
    adjoint = net.run(A.mH)[0][inside]
    torch.testing.assert_close(adjoint, value[inside].mH, rtol=1e-3, atol=1e-3)
    one = int(inside.nonzero()[0])
    assert torch.equal(net.run(A[one].expand(9, n, n))[0], value[one].expand(9, n, n))


@pytest.mark.parametrize(("kind", "n", "dtype"), KERNELS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_bad_matrix_is_named_and_no_row_but_its_own_is_touched(native, kind, n, dtype, bad):
    net, A = network(kind, dtype), matrices(kind, 50, n, dtype)
    good, before = net.run(A)
    A[31, 1, 2] = bad
    if native == "compiled":
        kernel = compiled.find(A, kind)
        out = torch.full_like(A, -7.0)
        record = kernel.value(A, net._passes(), 1e-6, 1e-3, False, out)
        assert bool(record.failed[31])
        assert bool((out[record.failed] == -7.0).all())
    value, outcome = net.run(A)
    others = (before.computed() > 0) & (torch.arange(50) != 31)
    assert torch.equal(value[others], good[others])
    derivative = net.run_frechet(A, torch.ones_like(A), outcome)
    assert bool(torch.isfinite(derivative[others]).all())
    reason = getattr(neural_expm, kind)(
        A[others | (torch.arange(50) == 31)], outside="nan", return_report=True
    )
    assert int((~reason[1].inside).sum()) == 1
    assert ("NaN" in str(reason[1].reason)) == (not abs(bad) < 1e38)


@pytest.mark.parametrize("kind", ["sign", "sqrtm"])
def test_no_certificate_that_the_mathematics_forbids(native, kind):
    """Rotations have a pair of eigenvalues at any angle: near the forbidden line refused, never answered wrongly."""
    dtype = torch.float64 if kind == "sign" else torch.float32
    angle = torch.deg2rad(torch.arange(0.0, 180.0, 0.25, dtype=torch.float64))
    A = torch.zeros(angle.numel(), 3, 3, dtype=torch.float64)
    A[:, 0, 0], A[:, 0, 1], A[:, 1, 0], A[:, 1, 1] = angle.cos(), -angle.sin(), angle.sin(), angle.cos()
    A[:, 2, 2] = 1.0
    value, outcome = network(kind, dtype).run(A.to(dtype))
    inside = outcome.computed() > 0
    expected = exact.VALUE[kind](A[inside])[0]
    assert int(inside.sum()) > 100
    assert float((value[inside] - expected).abs().max()) < 1e-5


def test_without_a_compiler_another_kernel_answers(switch, monkeypatch, tmp_path):
    switch("assembled AVX-512" if True in WIDTHS else "assembled AVX2" if WIDTHS else "eager")
    monkeypatch.setenv("NEURAL_EXPM_KERNEL_CACHE", str(tmp_path))
    monkeypatch.setenv("NEURAL_EXPM_COMPILE", "1")
    monkeypatch.setenv("CXX", "no-such-compiler")
    A = matrices("sign", 9, 3, torch.float64)[::3]
    value, report = neural_expm.sign(A, return_report=True)
    assert report.kernel == ("assembled" if WIDTHS else "eager")
    assert error(value, exact.sign(A)[0]) < ROUNDINGS
    assert compiled.state()["sign", 3, torch.float64] == "failed"


@pytest.mark.parametrize("module", [pytest.param(compiled, marks=needs_compiler), assembled])
def test_a_wrong_kernel_is_refused(switch, monkeypatch, module):
    switch("compiled" if module is compiled else "assembled")
    monkeypatch.setattr(module.KINDS["sign"], "discrepancy", lambda kernel: 1e-3)
    _, report = neural_expm.sign(matrices("sign", 9, 3, torch.float64)[::3], return_report=True)
    assert report.kernel == "eager"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NATIVE, "eager"])
def test_refused_matrices_and_their_gradients_are_true(switch, name):
    switch(name)
    A = data.sample("sign_general", 3, 200, torch.Generator().manual_seed(3), gap=0.1, condition=10.0)
    net = network("sign", torch.float64)
    rows = net.run(A)[1].computed() == 0
    assert int(rows.sum()) > 20
    A = A[rows]
    G = torch.randn(A.shape, dtype=A.dtype, generator=torch.Generator().manual_seed(4))
    leaf = A.clone().requires_grad_()
    value, report = neural_expm.sign(leaf, return_report=True)
    assert not bool(report.inside.any())
    assert error(value.detach(), exact.sign(A)[0]) < ROUNDINGS
    (gradient,) = torch.autograd.grad(value, leaf, G)
    assert gradient_error(gradient, exact.sign_frechet(A.mH, G), G) < 50 * ROUNDINGS


@pytest.mark.parametrize("name", [value for value in NATIVE if value.values[0] != "compiled"])
@pytest.mark.parametrize(("kind", "n", "dtype"), KERNELS)
def test_nothing_beyond_a_batch_is_touched(switch, name, kind, n, dtype):
    """Otherwise the process ends here."""
    switch(name)
    A = before_a_wall(matrices(kind, 21, n, dtype))
    E, out = before_a_wall(torch.ones_like(A)), before_a_wall(torch.zeros_like(A))
    kernel, passes = assembled.find(A, kind), network(kind, dtype)._passes()
    for B in (A, A.mT):
        record = kernel.value(B, passes, 1e-6, 1e-3, False, out)
        kernel.frechet(
            B, E, passes, Course(record.hermitian, record.passes, before_a_wall(record.scale)), out
        )
