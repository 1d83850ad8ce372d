"""Peak memory of forward and backward, by the instrument of benchmarks/memory.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from neural_expm.bench.workloads import select

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def memory():
    spec = importlib.util.spec_from_file_location("memory_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_instrument_counts_every_byte(memory):
    def call():
        first = torch.empty(1000, dtype=torch.float64)
        second = torch.empty(500, dtype=torch.float64)
        del first
        torch.empty(300, dtype=torch.float64)
        return second

    assert memory.peak_allocated(call) == 12_000


def test_forward_and_backward_need_at_most_a_third_of_what_torch_does(memory):
    (workload,) = select("apps", ["phylogenetics-amino"])
    A, G = workload.matrices().requires_grad_(), workload.cotangent()
    peaks = {}
    for column in ("torch", "eager"):
        call = memory.forward_backward(column, A, G)
        call()  # reads weights
        peaks[column] = memory.peak_allocated(call)
    assert peaks["eager"] >= 2 * A.nbytes  # the value and the gradient, at the least
    assert 3 * peaks["eager"] <= peaks["torch"]
