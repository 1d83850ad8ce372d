"""Measure a network on held-out matrices: ``python -m neural_expm.training evaluate``.

Three disjoint splits: training draws from the first, conformal bounds are calibrated on the second, and every
figure that is published, coverage of those bounds included, comes from the third.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from neural_expm.networks.transformer import apply_framed
from neural_expm.training.config import RunConfig
from neural_expm.training.conformal import conformal_bound, covered
from neural_expm.training.datasets import held_out
from neural_expm.training.files import write_json
from neural_expm.training.frechet import adjoint_frechet
from neural_expm.training.metrics import d1_error, relative_error, summary

#: At least 100 000 matrices over the seven sizes, for the quantiles and for the calibration.
COUNT = 14_300
COVERAGES = (0.95, 0.99)
#: d1: the tolerances of arXiv 2602.07800.
TOLERANCES = (0.05, 0.02, 0.01, 0.005)
#: Matrices of each size whose gradient is compared with the Fréchet derivative.
GRADIENTS = 300
#: What is left out, to show what each part is worth: name → (network, polish).
PARTS = {
    "network": (True, True),
    "network, no last products": (True, False),
    "baseline with last products": (False, True),
    "baseline": (False, False),
}


def pairs(config: RunConfig, n: int, count: int, split: str) -> tuple[Tensor, Tensor]:
    """Return held-out pairs from the first distribution of a run: the one its promise speaks of."""
    entry = {k: v for k, v in config.data[0].items() if k != "weight"}
    name = entry.pop("distribution")
    return held_out(config.function, name, n, count, split, **entry)


@torch.no_grad()
def errors_of(
    function: Callable[[Tensor], Tensor], batches: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return relative errors and d1, each (sizes, count), of a float32 function against float64 references."""
    relative, d1 = [], []
    for matrices, values in batches:
        output = torch.cat([function(part) for part in matrices.float().split(1024)]).double()
        relative.append(relative_error(output, values))
        d1.append(d1_error(output, values))
    return torch.stack(relative), torch.stack(d1)


def d1_fractions(errors: Tensor) -> dict[str, float]:
    """Return the fraction of matrices within each of the paper's tolerances."""
    return {f"{tolerance:g}": covered(errors, tolerance) for tolerance in TOLERANCES}


def gradient_errors(net: nn.Module, config: RunConfig, count: int = GRADIENTS) -> dict[str, float]:
    """Return quantiles of the relative error of ∇⟨W, net(A)⟩ for Gaussian W."""
    errors = []
    for n in config.sizes:
        matrices, _ = pairs(config, n, count, "test")
        generator = torch.Generator().manual_seed(n)
        weights = torch.randn(matrices.shape, generator=generator, dtype=torch.float64)
        leaf = matrices.float().requires_grad_()
        (gradient,) = torch.autograd.grad(net(leaf), leaf, weights.float())
        exact = adjoint_frechet(config.function, matrices, weights)
        if config.network["frame"].get("symmetric"):
            # On symmetric matrices only the symmetric part of a gradient is defined.
            gradient, exact = 0.5 * (gradient + gradient.mT), 0.5 * (exact + exact.mT)
        # Where f is locally constant (sign(A) = ±I) the true gradient is zero: no relative error exists.
        moves = exact.flatten(1).norm(dim=1) > 1e-9
        errors.append(relative_error(gradient.double()[moves], exact[moves]))
    return summary(torch.cat(errors))


def measure(net: Any, config: RunConfig, count: int = COUNT) -> dict[str, Any]:
    """Return everything that is published about one network, measured on the splits named above."""
    net.eval()
    calibration = [pairs(config, n, count, "calibration") for n in config.sizes]
    test = [pairs(config, n, count, "test") for n in config.sizes]
    calibrated = errors_of(net, calibration)[0]
    parts = {
        name: errors_of(functools.partial(apply_framed, net, network=on, polish=last), test)
        for name, (on, last) in PARTS.items()
        if net.frame.polishes or not name.endswith("last products")
    }
    errors, d1 = parts["network"]
    # A bound for each size: one for all would cover small n too often and n = 8 too seldom.
    bounds = {
        str(n): {f"{coverage:g}": conformal_bound(row, coverage) for coverage in COVERAGES}
        for n, row in zip(config.sizes, calibrated, strict=True)
    }
    return {
        "distribution": config.data[0],
        "sizes": config.sizes,
        "samples": errors.numel(),
        "calibration_samples": calibrated.numel(),
        "seed": 0,
        "relative_error": summary(errors.flatten()),
        "mean_by_size": {str(n): float(row.mean()) for n, row in zip(config.sizes, errors, strict=True)},
        "d1_within": d1_fractions(d1),
        "conformal_by_size": bounds,
        "coverage_by_size": {
            n: {key: covered(row, bound) for key, bound in bounds[n].items()}
            for n, row in zip(bounds, errors, strict=True)
        },
        "parts": {name: summary(rows.flatten()) for name, (rows, _) in parts.items()},
        "gradient_error": gradient_errors(net, config, min(count, GRADIENTS)),
        "multiplications": {str(n): multiplications(net, n) for n in config.sizes},
    }


@torch.no_grad()
def multiplications(net: nn.Module, n: int) -> int:
    """Return the multiplications of one n × n matrix in matrix products and attention."""
    with FlopCounterMode(display=False) as counter:
        net(torch.eye(n).expand(1, n, n))
    return counter.get_total_flops() // 2


def scaled_exponential(net: nn.Module, matrices: Tensor, radius: float) -> Tensor:
    """Return net(A/2ᵏ)^{2ᵏ} with the least k that brings ‖A − μI‖₂ under ``radius``, for symmetric A."""
    n = matrices.shape[-1]
    shift = matrices.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    centred = matrices - shift * torch.eye(n, dtype=matrices.dtype)
    norm = torch.linalg.eigvalsh(centred).abs().amax(-1)
    squarings = (norm / radius).log2().ceil().clamp(min=0)
    power = net(centred / 2 ** squarings[:, None, None])
    for done in range(int(squarings.max())):
        power = torch.where((squarings > done)[:, None, None], power @ power, power)
    return shift.exp() * power


@torch.no_grad()
def paper_setting(net: nn.Module, radius: float, count: int) -> dict[str, Any]:
    """Return d1 of exp on ``gaussian_symmetric``, n = 3, 4, 5, and of the default network on the same set."""
    from neural_expm import expm

    result: dict[str, Any] = {
        "distribution": {"distribution": "gaussian_symmetric"},
        "samples_by_size": count,
    }
    for n in (3, 4, 5):
        matrices, values = held_out("expm", "gaussian_symmetric", n, count)
        single = matrices.float()
        default: Any = expm(single)
        outputs = {"transformer": scaled_exponential(net, single, radius), "equivariant": default}
        result[str(n)] = {
            name: {
                "d1_within": d1_fractions(d1_error(output.double(), values)),
                "relative_error": summary(relative_error(output.double(), values)),
            }
            for name, output in outputs.items()
        }
    return result


def main(argv: list[str]) -> int:
    from neural_expm.training.shipping import load_run, shipped_runs

    parser = argparse.ArgumentParser(prog="python -m neural_expm.training evaluate", description=__doc__)
    parser.add_argument("names", nargs="*", help="recipes to measure (default: every shipped one)")
    parser.add_argument("--run", type=Path, help="measure a run folder instead of shipped weights")
    parser.add_argument("--count", type=int, default=COUNT, help="matrices of each size")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args(argv)
    runs = [load_run(options.run)] if options.run else shipped_runs(options.names)
    results: dict[str, Any] = {}
    for net, config in runs:
        results[config.name] = measure(net, config, options.count)
        print(config.name, json.dumps(results[config.name]["relative_error"]))
        if config.name == "expm-transformer-block":
            results["paper"] = paper_setting(net, 2.0, options.count)
    if options.out:
        command = " ".join(["python -m neural_expm.training evaluate", *argv])
        machine = {"torch": str(torch.__version__), "machine": platform.machine()}
        write_json(options.out, {"command": command, **machine, "results": results})
    return 0
