"""Peak memory of forward and backward, by the instrument of benchmarks/memory.py."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
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

    assert memory.allocated(call) == (12_000, 0)
    kept = []
    assert memory.allocated(lambda: kept.append(torch.empty(64))) == (256, 256)


def test_forward_and_backward_need_at_most_a_third_of_what_torch_does():
    name = "phylogenetics-amino"
    peaks = {}
    for column in ("torch", "eager", "assembled"):
        # Not in this process, where an earlier test may have left a workspace.
        command = [sys.executable, SCRIPT, "--one", name, column, "allocated"]
        environment = {**os.environ, "NEURAL_EXPM_ASSEMBLE": str(int(column == "assembled"))}
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=120, env=environment
        )
        peaks[column] = json.loads(done.stdout)["allocated"]
    for ours in ("eager", "assembled"):
        # The value, the gradient and a workspace, at the least.
        assert peaks[ours] > 2 * select("apps", [name])[0].matrices().nbytes
        assert 3 * peaks[ours] <= peaks["torch"]
