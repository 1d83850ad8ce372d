"""Nanoseconds per matrix against the batch, with the error beside the speed and two floors below it.

    python benchmarks/scaling.py                     # writes benchmarks/results/scaling.json and scaling.png, ≤ 130 s
    python benchmarks/scaling.py --dtype float64 --sizes 4 20 --seconds 600

Columns: ``expm`` and torch, forward and forward with backward; scipy, jax and torch_matfunc where they can be imported.
Floors: ``products`` is what the bare matrix products of the plan cost, by the fastest of torch's ways to call them (all
at once, or by chunks that stay in the cache); ``bandwidth`` is reading the input once and writing the output once, by
torch's copy of this very batch, so in the cache where the batch is.  From n = 16 on, where products are what there is
to do, ``products / expm`` says what share of our time the bare products would take.  Matrices are ``ginibre(n, 2)``;
errors are relative, in the Frobenius norm, against ``torch.linalg.matrix_exp`` in double.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch

os.environ.setdefault("NEURAL_EXPM_COMPILE", "1")  # measure the compiled kernels, not the wait for them

import neural_expm
from neural_expm.bench.suite import cpu_name
from neural_expm.kernels import compiled

RESULTS = Path(__file__).parent / "results"
SIZES = (2, 3, 4, 8, 16, 32, 64, 128)
BATCHES = tuple(10**k for k in range(7))
MEMORY = 1 << 28  # bytes of one batch, at most
CELL_S = 0.12  # repeat a cell for so long, at least twice
# Or this often, if it takes no longer than so many seconds more: the first results of a size may wait for memory that a
# virtual machine has to ask its host for.
CALLS, PATIENCE_S = 6, 4.0
TRUTH = 64  # matrices whose error is measured
CHUNK = 1 << 19  # bytes of a chunk whose product stays in the cache
PRODUCTS_N = 16  # from here on the matrix products are the work


def ginibre(batch: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    """τ·G/‖G‖₂ with τ uniform on (0, 2]: a few thousand different ones, repeated."""
    generator = torch.Generator().manual_seed(n)
    few = min(batch, max(TRUTH, 4096 // n))
    G = torch.randn(few, n, n, generator=generator, dtype=torch.float64)
    A = G / torch.linalg.matrix_norm(G, 2)[:, None, None] * 2 * torch.rand(few, 1, 1, generator=generator)
    return A.repeat(-(-batch // few), 1, 1)[:batch].to(dtype).contiguous()


def seconds(call: Callable[[], object], budget: float) -> float:
    """The best of repeated calls, two at least, after one to warm up that does not count."""
    call()
    times: list[float] = []
    until = time.perf_counter() + budget
    while (
        len(times) < 2
        or (now := time.perf_counter()) < until
        or (len(times) < CALLS and now < until + PATIENCE_S)
    ):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def with_gradient(function: Callable, A: torch.Tensor) -> Callable[[], object]:
    """Forward and backward in one call."""
    B, G = A.clone().requires_grad_(), torch.ones_like(A)
    return lambda: torch.autograd.grad(function(B), B, G)


def columns(A: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is timed on a batch, those that are installed."""
    calls: dict[str, Callable[[], object]] = {
        "expm": lambda: neural_expm.expm(A),
        "expm, backward": with_gradient(neural_expm.expm, A),
        "torch": lambda: torch.linalg.matrix_exp(A),
        "torch, backward": with_gradient(torch.linalg.matrix_exp, A),
    }
    for name, make in {"scipy": by_scipy, "jax": by_jax, "torch_matfunc": by_torch_matfunc}.items():
        try:
            calls[name] = make(A)
        except ImportError:
            continue
    return calls


def by_scipy(A: torch.Tensor) -> Callable[[], object]:
    """One by one: on batches ``scipy.linalg.expm`` 1.18.0 is wrong."""
    from scipy.linalg import expm

    array = A.numpy()
    return lambda: [expm(a) for a in array]


def by_jax(A: torch.Tensor) -> Callable[[], object]:
    """Compiled for the shape by the call that warms up; on jax's default device, which is to be the CPU here."""
    import jax

    x = jax.numpy.asarray(A.numpy())
    return lambda: jax_expm()(x).block_until_ready()


@cache
def jax_expm() -> Callable:
    """One function, so that jax compiles each shape once."""
    import jax
    from jax.scipy.linalg import expm

    return jax.jit(jax.vmap(expm))


def by_torch_matfunc(A: torch.Tensor) -> Callable[[], object]:
    """https://github.com/abhijeetgangan/torch_matfunc; its kernels are for CUDA, on a CPU it is torch operations."""
    from torch_matfunc.linalg import matrix_exp

    return lambda: matrix_exp(A)


def floors(A: torch.Tensor, out: torch.Tensor) -> dict[str, Callable[[], object]]:
    """One product of the whole batch in several ways, and one copy of it."""
    step = max(1, CHUNK // A[0].nbytes)
    chunks = A.split(step)
    buffers = [out[: chunk.shape[0]] for chunk in chunks]

    def by_chunks() -> None:
        for chunk, buffer in zip(chunks, buffers, strict=True):
            torch.bmm(chunk, chunk, out=buffer)

    calls = {"bmm": partial(torch.bmm, A, A, out=out), "copy": lambda: out.copy_(A)}
    if len(chunks) > 1:
        calls["bmm by chunks"] = by_chunks
    if A.shape[0] == 1:
        calls["mm"] = partial(torch.mm, A[0], A[0], out=out[0])
    return calls


def copy_bandwidth() -> float:
    """Bytes a second of torch's copy between arrays beyond the caches (read and written bytes both counted)."""
    source = torch.ones(1 << 24)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), 0.3)


def errors(A: torch.Tensor) -> dict[str, float]:
    """Largest relative error of the first matrices."""
    B = A[:TRUTH]
    truth = torch.linalg.matrix_exp(B.double())
    size = torch.linalg.matrix_norm(truth)
    results = {"expm": neural_expm.expm(B), "torch": torch.linalg.matrix_exp(B)}
    return {k: float((torch.linalg.matrix_norm(v.double() - truth) / size).max()) for k, v in results.items()}


def measure(sizes: list[int], dtype: torch.dtype, limit: float) -> dict:
    """All rows within ``limit`` seconds: an equal share for each size, small batches first."""
    begin = time.perf_counter()
    bandwidth = copy_bandwidth()
    rows = []
    for done, n in enumerate(sizes):
        until = time.perf_counter() + (limit - (time.perf_counter() - begin)) / (len(sizes) - done)
        spent: dict[
            str, tuple[float, float]
        ] = {}  # of the last cell of a column: seconds a matrix, and in all
        for batch in BATCHES:
            if batch * n * n * dtype.itemsize > MEMORY:
                break
            A = ginibre(batch, n, dtype)
            report = neural_expm.explain("expm", A)
            products = float((report.products + report.squarings).double().mean())
            row = {"n": n, "batch": batch, "kernel": report.kernel, "products a matrix": products, "ns": {}}
            out = torch.empty_like(A)
            bare = floors(A, out)
            ns = row["ns"]
            for name, call in (bare | columns(A)).items():
                # A column that would not fit into what is left is left out from here on; a first call may compile.
                each, whole = spent.get(name, (0.0, 0.0))
                begun = time.perf_counter()
                if begun + max(3 * each * batch, whole) > until:
                    continue
                took = seconds(call, CELL_S)
                spent[name] = took / batch, time.perf_counter() - begun
                ns[name] = took / batch * 1e9
            measured = {name: ns.pop(name) for name in bare if name in ns}
            if not ns:
                break
            if "copy" in measured:
                ns["bandwidth"] = measured.pop("copy")
            if measured:
                ns["products"] = min(measured.values()) * products
            if n >= PRODUCTS_N and {"products", "expm"} <= set(ns):
                row["products / expm"] = ns["products"] / ns["expm"]
            row["error"] = errors(A)
            rows.append(row)
    return {
        "command": shlex.join(["python", "benchmarks/scaling.py", *sys.argv[1:]]),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": cpu_name(),
        "bytes per second": bandwidth,
        "seconds": time.perf_counter() - begin,
        "kernels": {f"{n} {str(d)[6:]}": s for (_, n, d), s in compiled.state().items()},
        "rows": rows,
    }


def plot(results: dict, path: Path) -> None:
    """One panel a size: ns per matrix against the batch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = sorted({row["n"] for row in results["rows"]})
    names = list(dict.fromkeys(name for row in results["rows"] for name in row["ns"]))
    figure, panels = plt.subplots(2, -(-len(sizes) // 2), figsize=(14, 6.5), squeeze=False)
    for panel, n in zip(panels.flat, sizes, strict=False):
        rows = [row for row in results["rows"] if row["n"] == n]
        for index, name in enumerate(names):
            points = [(row["batch"], row["ns"][name]) for row in rows if name in row["ns"]]
            style = ":" if name in ("products", "bandwidth") else "--" if "backward" in name else "-"
            panel.loglog(*zip(*points, strict=True), style, color=f"C{index}", label=name) if points else None
        error = max(row["error"]["expm"] for row in rows), max(row["error"]["torch"] for row in rows)
        panel.set_title(f"n = {n}; largest error {error[0]:.0e}, torch {error[1]:.0e}", fontsize=9)
        panel.set_xlabel("batch")
    panels[0][0].set_ylabel("ns per matrix")
    panels[-1][0].set_ylabel("ns per matrix")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncol=len(names), fontsize=8)
    figure.suptitle(f"expm, {results['dtype']}, CPU, {results['threads']} threads")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write, plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    if options.dtype == "float64":
        os.environ.setdefault("JAX_ENABLE_X64", "1")  # read when jax is imported
    for n in options.sizes:  # compile, or take from the cache folder, before the clock runs
        neural_expm.expm(torch.zeros(8, n, n, dtype=dtype))
    results = measure(options.sizes, dtype, options.seconds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    plot(results, options.out.with_suffix(".png"))
    print(f"{len(results['rows'])} rows in {results['seconds']:.0f} s → {options.out}")


if __name__ == "__main__":
    main()
