"""What a program has set for itself neither leaks into a matrix function nor is left changed by it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import neural_expm
from neural_expm.kernels.precision import full_precision
from neural_expm.networks.exponential import EquivariantExponential


@pytest.fixture
def rounded_products():
    """As a program that lets its layers round the factors of products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def test_single_precision_products_are_not_rounded_to_fewer_bits(rounded_products, monkeypatch):
    seen = []
    run = EquivariantExponential.run

    def spy(network, A, trust=False):
        seen.append(torch.backends.mkldnn.matmul.fp32_precision)
        return run(network, A, trust)

    monkeypatch.setattr(EquivariantExponential, "run", spy)
    A = torch.randn(5, 40, 40, generator=torch.Generator().manual_seed(0)) / 4
    E = neural_expm.expm(A)
    truth = torch.linalg.matrix_exp(A.double())
    assert float((E - truth).norm() / truth.norm()) < 1e-6
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # the program's choice stands
    assert seen == ["ieee"]


def test_the_choice_is_put_back_after_an_error(rounded_products):
    A = torch.zeros(2, 2)
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(RuntimeError), full_precision(A):
        torch.mm(A, A.new_zeros(3, 3))
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    with full_precision(A.double()):  # double precision has nothing to fear
        assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("function", ["expm", "sign", "sqrtm"])
@pytest.mark.parametrize(("batch", "n"), [(300, 3), (20, 20), (1, 20)])
def test_inference_mode_leaves_nothing_behind_that_training_could_not_use(monkeypatch, function, batch, n):
    monkeypatch.setenv("NEURAL_EXPM_COMPILE", "0")
    A = torch.randn(batch, n, n, generator=torch.Generator().manual_seed(n)) / n
    A = A @ A.mT + torch.eye(n)
    f = getattr(neural_expm, function)
    with torch.inference_mode():
        first = f(A)
    A.requires_grad_()
    second = f(A)
    torch.testing.assert_close(first, second.detach())
    (gradient,) = torch.autograd.grad(second.sum(), A)
    with torch.inference_mode():
        torch.testing.assert_close(f(A), first)
    torch.testing.assert_close(torch.autograd.grad(f(A).sum(), A)[0], gradient)


@pytest.mark.parametrize("assemble", ["0", "1"])
def test_another_default_device(assemble):
    """From the first call on: weights, levels and workspaces of matrices on the CPU are there too."""
    program = """
import torch, neural_expm
torch.set_default_device("meta")
for function in ("expm", "sign", "sqrtm"):
    for shape in ((3, 3), (40, 3, 3), (2, 20, 20)):
        A = (torch.eye(shape[-1], device="cpu") * 4 + torch.ones(shape, device="cpu") / 9).requires_grad_()
        value, report = getattr(neural_expm, function)(A, return_report=True)
        gradient, = torch.autograd.grad(getattr(neural_expm, function)(A).sum(), A)
        assert bool(value.isfinite().all() & gradient.isfinite().all() & report.inside.all()), (function, shape)
        str(report)
B = torch.full((4, 3, 3), 1e5, device="cpu")
B[1] = torch.nan
str(neural_expm.explain("expm", B))
assert neural_expm.expm(B / 1e5, model="expm-transformer-block").isfinite()[0].all()
assert neural_expm.expm(B / 1e5, rtol=1e-2).isfinite()[0].all()
"""
    environment = {**os.environ, "NEURAL_EXPM_COMPILE": "0", "NEURAL_EXPM_ASSEMBLE": assemble}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
