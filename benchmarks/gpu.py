"""The Triton kernels on a CUDA device: first whether they are right, then nanoseconds per matrix against torch.

    python benchmarks/gpu.py                                  # writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --sizes 2 4 --dtypes float32     # fewer kernels to compile

A gate comes before each (function, n, dtype): value into memory full of NaN, gradient, a NaN matrix among neighbours,
and a CUDA graph captured and replayed, all against double precision.  Where a gate is red nothing is timed, and the
command fails.  ``expm`` is timed against ``torch.linalg.matrix_exp``, ``sign`` and ``sqrtm`` against the exact Newton
iterations of ``exact.py``, in turns; a ratio is the median over the pairs.  The share of the memory's bandwidth is that
of the bare kernel, which reads each matrix once and writes it once, of a copy's measured speed.

Without a CUDA device it says so and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

os.environ["NEURAL_EXPM_TRITON"] = "1"

import neural_expm
from neural_expm import exact, validate
from neural_expm.bench.measure import CLOCKS, compare, single
from neural_expm.kernels.triton import route as triton_route

RESULTS = Path(__file__).parent / "results" / "gpu.json"
SIZES = {"expm": (1, 2, 3, 4, 5, 6, 7, 8, 16, 32), "sign": (2, 4, 8, 16, 32), "sqrtm": (2, 4, 8, 16, 32)}
BATCHES = (64, 65536)
DTYPES = ("float32", "float64", "complex64")
# Largest relative Frobenius error of a matrix, in roundings of the dtype that is computed in: value and gradient.
LIMITS = {"value": 100.0, "gradient": 1000.0}
GATED = 67  # matrices of a gate: no multiple of a block
FEW = 4096  # different matrices of a timed batch, repeated


def device_time() -> float:
    """Seconds, once the device is done: it is waited for at both ends of a sample, not between the calls of one."""
    torch.cuda.synchronize()
    return time.perf_counter()


CLOCKS["cuda"] = device_time


def matrices(
    function: str, n: int, dtype: torch.dtype, count: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A batch in the dtype that ``function`` computes in, and directions."""
    A, E = triton_route.samples(function, n, dtype, min(count, FEW))
    times = math.ceil(count / A.shape[0])
    wide = validate.working_dtype(function, dtype)
    A, E = (X.to(device, wide).repeat(times, 1, 1)[:count].contiguous() for X in (A, E))
    return A, E


def error(X: Tensor, truth: Tensor) -> float:
    """The largest of the batch, in roundings; NaN where X has one.  A derivative that vanishes is compared with one."""
    difference = torch.linalg.matrix_norm(X.to(truth.dtype) - truth)
    return (
        float((difference / torch.linalg.matrix_norm(truth).clamp_min(1e-3)).max()) / torch.finfo(X.dtype).eps
    )


def trusted(function: str) -> Callable[[Tensor], Tensor]:
    """The public function, without a word to the host."""
    return lambda A: getattr(neural_expm, function)(A, outside="trust")


def network_of(function: str, A: Tensor) -> torch.nn.Module:
    """The one that ``function`` takes for A."""
    return neural_expm.load(f"{function}-equivariant", validate.real_dtype(A.dtype))


# --- right ------------------------------------------------------------------------------------------------------------


def gate(function: str, n: int, dtype: torch.dtype, device: torch.device) -> dict:
    """What was found for one (function, n, dtype), and whether it is ``green``."""
    A, E = matrices(function, n, dtype, GATED, device)
    wide = torch.complex128 if A.is_complex() else torch.float64
    truth = exact.VALUE[function](A.to(wide))[0]
    adjoint = exact.FRECHET[function](A.mH.to(wide).resolve_conj().contiguous(), E.to(wide))
    found: dict = {"function": function, "n": n, "dtype": str(dtype)[6:], "limits": LIMITS}

    kernel = triton_route.find(A, network_of(function, A))
    found["kernel"] = "eager" if kernel is None else kernel.name
    if kernel is None:
        value, neighbours = trusted(function)(A), True
    else:
        value = torch.full_like(A, torch.nan)
        kernel.value(A, value)
        neighbours = leaves_neighbours_alone(kernel, A, truth)
    B = A.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(trusted(function)(B), B, E)
    found |= {"value": error(value, truth), "gradient": error(gradient, adjoint), "neighbours": neighbours}
    found["graph"] = captured(function, A, truth) if device.type == "cuda" else None
    found["green"] = (
        all(found[key] <= limit for key, limit in LIMITS.items())
        and neighbours
        and found["graph"] is not False
        and (kernel is not None or n < triton_route.LEAST_N[function])
    )
    return found


def leaves_neighbours_alone(kernel: triton_route.Kernel, A: Tensor, truth: Tensor) -> bool:
    """Whether a NaN in one matrix stays there."""
    bad = A.shape[0] // 2
    A = A.clone()
    A[bad, 0, 0] = torch.nan
    value = torch.full_like(A, torch.nan)
    kernel.value(A, value)
    good = torch.arange(A.shape[0], device=A.device) != bad
    return error(value[good], truth[good]) <= LIMITS["value"]


def captured(function: str, A: Tensor, truth: Tensor) -> bool:
    """Whether a CUDA graph of the public call replays to the truth."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            value = trusted(function)(A)
    except RuntimeError as failure:
        print(f"  capture: {failure}")
        return False
    value.fill_(torch.nan)
    graph.replay()
    return error(value, truth) <= LIMITS["value"]


# --- fast -------------------------------------------------------------------------------------------------------------


def baseline(function: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], object]]:
    """What is there without this package: the value, and value with gradient."""
    if function == "expm":
        return torch.linalg.matrix_exp, with_gradient(torch.linalg.matrix_exp)
    return (
        lambda A: exact.VALUE[function](A)[0],
        lambda A, G: (exact.VALUE[function](A), exact.FRECHET[function](A.mH.resolve_conj(), G)),
    )


def with_gradient(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], object]:
    """Forward and backward in one call."""

    def both(A: Tensor, G: Tensor) -> object:
        B = A.detach().requires_grad_()
        return torch.autograd.grad(function(B), B, G)

    return both


def measure(
    function: str,
    n: int,
    dtype: torch.dtype,
    batch: int,
    bandwidth: float,
    budget: float,
    device: torch.device,
) -> dict:
    """One row: ns per matrix and ratios, forward, and forward with backward; the share of the bandwidth."""
    clock = "cuda" if device.type == "cuda" else "wall"
    A, G = matrices(function, n, dtype, batch, device)
    row: dict = {"function": function, "n": n, "dtype": str(dtype)[6:], "batch": batch}
    value, both = baseline(function)
    ours, ours_both = trusted(function), with_gradient(trusted(function))
    pairs = {
        "forward": (lambda: value(A), lambda: ours(A)),
        "forward and backward": (lambda: both(A, G), lambda: ours_both(A, G)),
    }
    for name, (theirs, mine) in pairs.items():
        timing = compare(theirs, mine, budget, clock)
        row[name] = {
            "baseline ns": timing.baseline / batch * 1e9,
            "ns": timing.ours / batch * 1e9,
            "ratio": timing.ratio,
            "quartiles": timing.spread,
            "pairs": timing.pairs,
        }
    kernel = triton_route.find(A, network_of(function, A))
    if kernel is not None:
        out = torch.empty_like(A)
        seconds, _ = single(lambda _: kernel.value(A, out), 200, budget, clock)
        row["kernel ns"] = seconds / batch * 1e9
        row["share of bandwidth"] = 2 * A.nbytes / seconds / bandwidth
    return row


def copy_bandwidth(device: torch.device, count: int = 1 << 28) -> float:
    """Bytes a second of a copy far larger than the caches, read and written both counted."""
    source = torch.ones(count // 4, device=device)
    target = torch.empty_like(source)
    clock = "cuda" if device.type == "cuda" else "wall"
    return 2 * source.nbytes / single(lambda _: target.copy_(source), 50, 1.0, clock)[0]


def rows_of(found: dict, bandwidth: float, budget: float, device: torch.device) -> list[dict]:
    """The rows behind a gate: none if it is red; a batch that does not fit is left out and said so."""
    if not found["green"]:
        return []
    rows = []
    for batch in BATCHES:
        cell = found["function"], found["n"], getattr(torch, found["dtype"]), batch
        try:
            rows.append(measure(*cell, bandwidth, budget, device))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            print(f"  batch {batch}: out of memory, left out")
    return rows


# --- command ----------------------------------------------------------------------------------------------------------


def collect(functions: list[str], sizes: list[int] | None, dtypes: list[str], budget: float) -> dict:
    """Gates, then what stands behind the green ones."""
    device = torch.device("cuda")
    bandwidth = copy_bandwidth(device)
    gates, rows = [], []
    for function in functions:
        for n in sizes or SIZES[function]:
            for dtype in dtypes:
                gates.append(gate(function, n, getattr(torch, dtype), device))
                print(
                    f"{function} n = {n} {dtype}: {'green' if gates[-1]['green'] else gates[-1]}", flush=True
                )
                rows += rows_of(gates[-1], bandwidth, budget, device)
    properties = torch.cuda.get_device_properties(device)
    return {
        "command": shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "torch": torch.__version__,
        "triton": importlib.import_module("triton").__version__,
        "bytes per second": bandwidth,
        "green": all(found["green"] for found in gates),
        "gates": gates,
        "rows": rows,
    }


def main() -> None:
    """Check, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--functions", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--dtypes", nargs="+", choices=(*DTYPES, "complex128"), default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=0.3, help="for each comparison")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "benchmarks/gpu.py needs a CUDA device, and torch sees none here: nothing was measured or written."
        )
    if importlib.util.find_spec("triton") is None:
        sys.exit(
            "benchmarks/gpu.py needs triton (pip install neural-expm[triton]): nothing was measured or written."
        )
    results = collect(options.functions, options.sizes, options.dtypes, options.seconds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{len(results['rows'])} rows behind {len(results['gates'])} gates → {options.out}")
    if not results["green"]:
        sys.exit("a gate is red: the kernels are wrong on this device, and no speed was measured there")


if __name__ == "__main__":
    main()
