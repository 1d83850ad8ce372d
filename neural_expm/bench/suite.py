"""Run a suite: each workload's errors first, then its times; the outcome is one JSON-able record."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import scipy
import scipy.linalg
import torch
from torch import Tensor

import neural_expm

from .. import exact
from . import accuracy
from .measure import Timing, compare, geometric_mean, single
from .workloads import Workload

FORMAT = 1
# A workload with at least this many matrices counts towards the geometric mean.
BATCHED = 100
# Shares of a workload's seconds: forward and forward + backward pairs, and SciPy.
FORWARD_SHARE, BOTH_SHARE, SCIPY_SHARE = 0.35, 0.55, 0.1
SCIPY_MATRICES = 200
SCIPY = {"expm": scipy.linalg.expm, "sign": scipy.linalg.signm, "sqrtm": scipy.linalg.sqrtm}


def _newton_frechet(A: Tensor, E: Tensor) -> Tensor:
    return exact.sign_frechet_at(exact.sign_by_newton(A)[0], A, E)


# Of the sign without the eigenvalues that the exact algorithm looks at where rounding may have done harm: in single
# precision, in which no call computes it, that is often.
VALUE = {**exact.VALUE, "sign": exact.sign_by_newton}
FRECHET = {**exact.FRECHET, "sign": _newton_frechet}


class Classical:
    """What a workload is compared with, and its gradient.

    expm: ``torch.linalg.matrix_exp`` and its autograd.  torch has no sign and no square root: there it is this
    package's own exact algorithm (Newton, Denman–Beavers) and its Fréchet derivative.
    """

    def __init__(self, function: str) -> None:
        self.function = function
        self.name = "torch" if function == "expm" else "exact"

    def value(self, A: Tensor) -> Tensor:
        if self.function == "expm":
            return torch.linalg.matrix_exp(A)
        return VALUE[self.function](A.reshape(-1, *A.shape[-2:]))[0].reshape(A.shape)

    def both(self, A: Tensor, leaf: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
        if self.function == "expm":
            return value_and_gradient(self.value, leaf, G)
        flat, cotangent = (X.reshape(-1, *X.shape[-2:]) for X in (A, G))
        return self.value(A), FRECHET[self.function](flat.mH, cotangent).reshape(A.shape)


def value_and_gradient(f: Callable[[Tensor], Tensor], leaf: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """F(leaf) and the gradient for the cotangent G."""
    value = f(leaf)
    return value.detach(), torch.autograd.grad(value, leaf, G)[0]


def run_workload(workload: Workload, seconds: float, seed: int = 0, clock: str = "wall") -> dict[str, Any]:
    """Errors, fallback, and times of one workload, which take about ``seconds``."""
    A, G = workload.matrices(seed), workload.cotangent(seed)
    leaf = A.clone().requires_grad_()
    classical = Classical(workload.function)
    function = getattr(neural_expm, workload.function)

    def ours(X: Tensor) -> Tensor:
        return function(X, model=workload.model)

    value, report = function(A, model=workload.model, return_report=True)
    _, gradient = value_and_gradient(ours, leaf, G)
    classical_value, classical_gradient = classical.both(A, leaf, G)
    errors = accuracy.value_error(workload, A, value, classical_value)
    gradient_errors = accuracy.gradient_error(workload, A, G, gradient, classical_gradient)
    forward = compare(lambda: classical.value(A), lambda: ours(A), FORWARD_SHARE * seconds, clock)
    both = compare(
        lambda: classical.both(A, leaf, G),
        lambda: value_and_gradient(ours, leaf, G),
        BOTH_SHARE * seconds,
        clock,
    )
    scipy_seconds, scipy_matrices = _scipy(workload, A, SCIPY_SHARE * seconds, clock)
    return {
        "name": workload.name,
        "function": workload.function,
        "shape": list(workload.shape),
        "dtype": str(workload.dtype).removeprefix("torch."),
        "source": workload.source,
        "seed": seed,
        "checkpoint": report.checkpoint,
        "baseline": classical.name,
        "forward": _record(forward, workload.count, errors),
        "forward_backward": _record(both, workload.count, gradient_errors),
        "scipy_ns": 1e9 * scipy_seconds,
        "scipy_matrices": scipy_matrices,
        "fallback": 1.0 - float(report.inside.double().mean()),
        "passed": errors.passed and gradient_errors.passed,
    }


def run(
    workloads: tuple[Workload, ...], seconds: float, seed: int = 0, clock: str = "wall"
) -> Iterator[dict[str, Any]]:
    """One record a workload; ``seconds`` is shared among them."""
    for workload in workloads:
        yield run_workload(workload, seconds / len(workloads), seed, clock)


def result(suite: str, records: list[dict[str, Any]], seconds: float, clock: str = "wall") -> dict[str, Any]:
    """Everything that ``--json`` writes."""
    return {
        "format": FORMAT,
        "suite": suite,
        "environment": environment(clock),
        "seconds": seconds,
        "workloads": records,
        "summary": summary(records),
    }


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means over the batched workloads, the worst ratios, and the gate."""
    batched = [r for r in records if _batch(r) >= BATCHED]
    return {
        "batched": [r["name"] for r in batched],
        "forward": geometric_mean([r["forward"]["ratio"] for r in batched]),
        "forward_backward": geometric_mean([r["forward_backward"]["ratio"] for r in batched]),
        "worst_forward": min((r["forward"]["ratio"] for r in records), default=float("nan")),
        "worst_forward_backward": min(
            (r["forward_backward"]["ratio"] for r in records), default=float("nan")
        ),
        "failed": [r["name"] for r in records if not r["passed"]],
    }


def environment(clock: str = "wall") -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        "neural_expm": neural_expm.__version__,
        "torch": torch.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": "cpu",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": clock,
    }


def cpu_name() -> str:
    """The processor in words, where the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _record(timing: Timing, count: int, error: accuracy.Error) -> dict[str, Any]:
    return {
        "baseline_ns": 1e9 * timing.baseline / count,
        "ours_ns": 1e9 * timing.ours / count,
        "ratio": timing.ratio,
        "ratio_quartiles": list(timing.spread),
        "pairs": timing.pairs,
        "error": {**asdict(error), "passed": error.passed},
    }


def _scipy(workload: Workload, A: Tensor, budget: float, clock: str) -> tuple[float, int]:
    """Seconds per matrix, one by one: ``scipy.linalg.expm`` 1.18.0 is wrong on batches, and signm loops anyway."""
    matrices = list(A.reshape(-1, *A.shape[-2:])[:SCIPY_MATRICES].numpy())
    f = SCIPY[workload.function]
    return single(lambda i: f(matrices[i]), len(matrices), budget, clock)


def _batch(record: dict[str, Any]) -> int:
    return record["shape"][0] if len(record["shape"]) > 2 else 1
