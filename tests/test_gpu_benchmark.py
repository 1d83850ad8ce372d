"""benchmarks/gpu.py as far as a machine without a GPU can run it: gates and rows on the CPU, in the interpreter."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton_cases import DEVICE, QUIET

from neural_expm.kernels.triton import operators as triton_operators
from neural_expm.kernels.triton import route as triton_route

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
pytestmark = QUIET


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module, on the device of the tests, with small batches."""
    monkeypatch.setenv("NEURAL_EXPM_TRITON", "1")  # so that what the script sets is taken back
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(triton_route, "DEVICES", (DEVICE.type,))
    monkeypatch.setattr(module, "BATCHES", (3,))
    monkeypatch.setattr(module, "GATED", 7)
    triton_route.forget()
    yield module
    triton_route.forget()


def test_a_green_gate_is_followed_by_rows(gpu):
    found = gpu.gate("expm", 2, torch.float32, DEVICE)
    assert found["green"], found
    (row,) = gpu.rows_of(found, gpu.copy_bandwidth(DEVICE, 1 << 12), 0.0, DEVICE)
    assert row["forward"]["ratio"] > 0
    assert row["forward and backward"]["ns"] > 0
    assert row["share of bandwidth"] > 0


def test_the_gate_and_the_baseline_of_a_composition(gpu):
    function, dtype = "sqrtm", torch.complex64
    found = gpu.gate(function, 2, dtype, DEVICE)
    assert found["green"], found
    assert found["kernel"] == "triton"
    A, G = gpu.matrices(function, 2, dtype, 3, DEVICE)
    value, both = gpu.baseline(function)
    torch.testing.assert_close(gpu.trusted(function)(A), value(A), rtol=1e-5, atol=1e-5)
    (gradient,) = gpu.with_gradient(gpu.trusted(function))(A, G)
    torch.testing.assert_close(gradient, both(A, G)[1], rtol=1e-4, atol=1e-4)


def test_exp_of_a_number_is_nobodys_kernel_and_no_failure(gpu):
    found = gpu.gate("expm", 1, torch.float64, DEVICE)
    assert found["green"], found
    assert found["kernel"] == "eager"


def test_a_red_gate_is_followed_by_none(gpu, monkeypatch):
    operator = triton_operators.OPERATORS["expm"]
    right = operator.compute
    # Too little for the check of a fresh kernel, which compares for use, and too much for a benchmark.
    monkeypatch.setattr(
        operator, "compute", lambda A, table, out: (right(A, table, out), out.mul_(1 + 5e-5))[0]
    )
    found = gpu.gate("expm", 2, torch.float32, DEVICE)
    assert found["value"] > gpu.LIMITS["value"]
    assert not found["green"]
    assert gpu.rows_of(found, 1.0, 0.0, DEVICE) == []


def test_a_refused_kernel_is_red(gpu, monkeypatch):
    monkeypatch.setattr(triton_route, "find", lambda A, network: None)
    assert not gpu.gate("sign", 2, torch.float64, DEVICE)["green"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    out = tmp_path / "gpu.json"
    done = subprocess.run([sys.executable, SCRIPT, "--out", out], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs a CUDA device" in done.stderr
    assert not out.exists()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: runs the benchmark itself")
def test_on_a_gpu_the_gates_are_green(tmp_path):
    command = [sys.executable, SCRIPT, "--sizes", "2", "--dtypes", "float32", "--seconds", "0.05"]
    done = subprocess.run([*command, "--out", tmp_path / "gpu.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
