"""What a program has set for itself neither leaks into a matrix function nor is left changed by it."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading

import cases
import pytest
import torch
import torch.utils.flop_counter
from assembled_cases import WIDTHS, needs_code

import neural_expm
from neural_expm.kernels import assembled, native
from neural_expm.kernels.precision import full_precision
from neural_expm.networks.exponential import EquivariantExponential

KERNEL = "assembled" if WIDTHS else "eager"


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


def test_the_choice_is_put_back_by_the_last_of_several_threads(rounded_products):
    """The first to be done would leave the others with too few digits."""
    A = torch.zeros(2, 2)
    before = torch.backends.mkldnn.matmul.fp32_precision
    assert before != "ieee"
    inside, outside, seen = threading.Event(), threading.Event(), []

    def other():
        with full_precision(A):
            inside.set()
            outside.wait(10)
            seen.append(torch.backends.mkldnn.matmul.fp32_precision)

    thread = threading.Thread(target=other)
    with full_precision(A):
        thread.start()
        assert inside.wait(10)
    outside.set()
    thread.join()
    assert seen == ["ieee"]
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


@pytest.mark.parametrize("function", ["expm", "sign", "sqrtm"])
def test_another_default_dtype(machine_code, function):
    """The check of a kernel computes in the dtype of the kernel."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        A = torch.eye(5, dtype=torch.float32).expand(20, 5, 5) * 2
        assert getattr(neural_expm, function)(A, return_report=True)[1].kernel == KERNEL
        assert torch.isfinite(neural_expm.load(f"{function}-equivariant", torch.float32)(A)).all()
    finally:
        torch.set_default_dtype(before)
    assert "none" not in assembled.state().values() or not WIDTHS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_modules_in_half_precision(machine_code, dtype):
    """Are computed in single, as by the functions."""
    A = torch.eye(5, dtype=dtype).expand(20, 5, 5) / 2
    for function in ("expm", "sign", "sqrtm"):
        value = neural_expm.load(f"{function}-equivariant", torch.float32)(A)
        assert value.dtype == dtype
        torch.testing.assert_close(value, getattr(neural_expm, function)(A))


def test_a_recorder_of_operations_misses_nothing(machine_code):
    """Native code is no operation: a graph without it would return memory that nobody has written."""
    from torch.fx.experimental.proxy_tensor import make_fx

    A = torch.ones(4, 4) / 9
    neural_expm.expm(A)
    with pytest.raises(RuntimeError):
        make_fx(lambda X: neural_expm.expm(X))(A)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        torch.testing.assert_close(neural_expm.expm(A), torch.linalg.matrix_exp(A))
    assert counter.get_total_flops() > 0


@needs_code
def test_first_calls_in_two_threads_share_what_they_make(machine_code):
    """A table that one thread works on is not replaced by that of another."""
    A = torch.eye(4, dtype=torch.float64).expand(20, 4, 4) * 2
    network = neural_expm.functions._choose("sqrtm", A, None, None, "exact", False)[0]
    kernel = native.find(A, "sqrtm")
    passes = network._passes()
    passes.kept.clear()
    barrier, tables = threading.Barrier(4), []

    def first() -> None:
        barrier.wait()
        tables.append(kernel._table(passes, passes.general, 1, (1e-9, 1e-3)))

    threads = [threading.Thread(target=first) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({table.data_ptr() for table in tables}) == 1


@pytest.mark.parametrize("function", ["expm", "sign", "sqrtm"])
def test_weights_that_change_are_read_anew_and_promise_nothing(function):
    """By whatever way: a kernel keeps addresses of what it made of them."""
    A = cases.ginibre(4, 6, radius=0.1) + torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]).double())
    value = getattr(neural_expm, function)
    network = neural_expm.load(f"{function}-equivariant", torch.float64)
    expected, report = value(A, model=network, return_report=True)
    assert report.bound_kind == "certified"
    torch.testing.assert_close(expected, value(A))
    with torch.no_grad():
        for weight in network.state_dict().values():
            weight.mul_(1.01)
    for number in (1, 2):  # from one that was used, and from one that was not
        changed, report = value(A, model=network, outside="trust", return_report=True)
        assert not torch.allclose(changed, expected, rtol=1e-3), number
        assert bool(report.bound.isnan().all())
        network = copy.deepcopy(network)
    assert value(A, model=network, return_report=True)[1].bound_kind == "unproven"
    assert torch.equal(value(A), value(A, model=neural_expm.load(f"{function}-equivariant", torch.float64)))


@pytest.mark.parametrize("how", ["auto", "1", "0"])
def test_a_network_can_be_copied_and_pickled_after_it_was_used(how, monkeypatch):
    """Tables for native kernels hold pointers."""
    monkeypatch.setenv("NEURAL_EXPM_ASSEMBLE", "0" if how == "0" else "1")
    monkeypatch.setenv("NEURAL_EXPM_COMPILE", "0" if how == "0" else "auto")
    assembled.forget()
    A = cases.ginibre(3, 20).float()
    for function in ("expm", "sign", "sqrtm"):
        B = A + 2 * torch.eye(3)
        network = neural_expm.load(f"{function}-equivariant", torch.float32)
        expected = network(B)
        for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(twin(B), expected)
            assert not twin.training


def test_transforms_over_weights_are_refused():
    network = neural_expm.load("expm-equivariant", torch.float64)
    weights, A = dict(network.named_parameters()), torch.eye(3).double()

    def size(parameters):
        return torch.func.functional_call(network, parameters, (A,)).sum()

    with pytest.raises(neural_expm.InputError, match="its weights are frozen"):
        torch.func.grad(size)(weights)
