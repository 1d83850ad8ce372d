"""Peak memory of expm forward and backward, beside ``torch.linalg.matrix_exp``, on the workloads of the bench.

    python benchmarks/memory.py          # writes benchmarks/results/memory.json, some minutes

Every figure is that of the first call of this size in a fresh process, after small matrices have loaded weights and
kernels.  ``allocated`` is exact: the profiler lists each allocation of torch's allocator and its release, and the peak
of their sum is what the call needs beyond its input and cotangent (the value, the gradient and a workspace included);
``kept`` is what is still held once the results are gone, a workspace for the next call.  The profiler cannot see what
other libraries allocate (BLAS, the compiled kernels, whose workspace is some hundred kilobytes a thread), so
``resident`` stands beside it: how far the process grew, as the kernel of Linux saw it, coarse for small workloads and
blind to memory that was used before.  Blocks that wait for the next result (``kernels/results.py``) count nowhere.
The column ``compiled`` has a C++ compiler (NEURAL_EXPM_COMPILE=1), ``assembled`` has none (0), ``eager`` has torch
operations alone (NEURAL_EXPM_ASSEMBLE=0, too).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import neural_expm
from neural_expm.bench.suite import cpu_name
from neural_expm.bench.workloads import SUITES, Workload, select
from neural_expm.kernels import results

RESULTS = Path(__file__).parent / "results" / "memory.json"
# Column → NEURAL_EXPM_COMPILE, NEURAL_EXPM_ASSEMBLE.
COLUMNS = {"torch": "00", "eager": "00", "assembled": "01", "compiled": "11"}
OURS = [column for column in COLUMNS if column != "torch"]
LARGE_N = 14  # from here on the target holds: at most a third of torch's
TARGET = 1 / 3


def allocated(call: Callable[[], object]) -> tuple[int, int]:
    """Largest sum of live bytes during ``call``, beyond what was live before it, and what is left when it is over."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak, live


def resident(call: Callable[[], object]) -> int | None:
    """How far the resident memory of this process grew during ``call``; None where the system cannot tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status("VmRSS")
        call()
        return _status("VmHWM") - before
    except OSError:
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def forward_backward(column: str, A: Tensor, G: Tensor) -> Callable[[], object]:
    """Value and gradient of one column, as a training step would ask for them."""
    function = torch.linalg.matrix_exp if column == "torch" else neural_expm.expm

    def call() -> tuple[Tensor, Tensor]:
        value = function(A)
        return value, torch.autograd.grad(value, A, G)[0]

    return call


def measure_one(workload: Workload, column: str, figure: str) -> dict[str, int | None]:
    """``allocated`` and ``kept``, or ``resident``, of one column, in this process."""
    few = workload.smaller(8, None if workload.batch else 8)
    forward_backward(column, few.matrices().requires_grad_(), few.cotangent())()
    if column != "torch":
        neural_expm.explain(
            "expm", workload.matrices()
        )  # makes the kernel of this shape, and computes nothing
    call = forward_backward(column, workload.matrices().requires_grad_(), workload.cotangent())
    if figure == "resident":
        return {"resident": resident(call)}
    # Memory that is used again is the system's, not the allocator's: here all is the allocator's, and counted.
    results._SYSTEM_CAN = False
    peak, kept = allocated(call)
    return {"allocated": peak, "kept": kept}


def measure(names: list[str] | None) -> dict:
    """One row a workload; each figure in a process of its own."""
    rows = []
    for workload in select("apps", names):
        row = {"name": workload.name, "shape": list(workload.shape), "dtype": str(workload.dtype)[6:]}
        row["input bytes"] = workload.matrices().nbytes
        for column, (compile_, assemble) in COLUMNS.items():
            row[column] = {}
            for figure in ("allocated", "resident"):
                kernels = {"NEURAL_EXPM_COMPILE": compile_, "NEURAL_EXPM_ASSEMBLE": assemble}
                environment = {**os.environ, **kernels}
                command = [sys.executable, __file__, "--one", workload.name, column, figure]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                row[column] |= json.loads(done.stdout)
        for column in OURS:
            row[f"{column} / torch"] = row[column]["allocated"] / row["torch"]["allocated"]
        rows.append(row)
        print(text(row), flush=True)
    large = [row for row in rows if row["shape"][-1] >= LARGE_N]
    return {
        "command": "python benchmarks/memory.py",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": cpu_name(),
        "target from n = 14": TARGET,
        "missed": [
            f"{row['name']} ({column})"
            for row in large
            for column in OURS
            if row[f"{column} / torch"] > TARGET
        ],
        "rows": rows,
    }


def text(row: dict) -> str:
    """A line for the terminal."""
    cells = [f"{row['name']:<20}", f"input {row['input bytes']:>11,}"]
    cells += [f"{column} {row[column]['allocated']:>12,}" for column in COLUMNS]
    cells += [f"{row[f'{column} / torch']:.3f}" for column in OURS]
    return "  ".join(cells)


def main() -> None:
    """Measure and write; or, for a child process, measure one figure and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [workload.name for workload in SUITES["apps"]]
    parser.add_argument("--workloads", nargs="+", choices=known, help="default: all of the suite apps")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=3, metavar=("WORKLOAD", "COLUMN", "FIGURE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, column, figure = options.one
        print(json.dumps(measure_one(select("apps", [name])[0], column, figure)))
        return
    results = measure(options.workloads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{len(results['rows'])} rows → {options.out}; missed: {', '.join(results['missed']) or 'none'}")


if __name__ == "__main__":
    main()
