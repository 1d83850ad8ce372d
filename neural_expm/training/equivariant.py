"""Train the equivariant exponential: ``python -m neural_expm.training equivariant --dtype float32``.

For each tier: search for minimax weights, keep among solutions of like ε the one with the least rounding error, let
the certificate say on which radius the promise holds, write the weight file and its manifest entry.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..certificate import ExponentialError
from ..checkpoints import save, write_atomically
from ..kernels import eager
from ..manifest import PACKAGE, manifest_path
from ..networks.equivariant import EquivariantTransformer
from ..networks.exponential import EquivariantExponential
from ..networks.ladder import MAJORANT_RATIO
from . import minimax, schemes

# dtype → (tolerance ε, largest number of products).  ε is the unit roundoff of the dtype.
TARGETS = {"bfloat16": (3.9e-3, 4), "float32": (6e-8, 5), "float64": (1.1e-16, 6)}
# (dtype, products) → radius at which to search, rounds, starts per round: past the radius that the tolerance allows, so
# that the search sees an error well above the rounding of its own float64.
SEARCHES = {
    ("bfloat16", 3): (2.34, 8, 64),
    ("bfloat16", 4): (5.6, 12, 64),
    ("float32", 4): (2.45, 16, 64),
    ("float32", 5): (4.9, 60, 32),
}
MAX_SQUARINGS = 6
SEED = 0


def network_of(theta: Tensor, low: Tensor, products: int) -> EquivariantTransformer:
    """The network with a weight vector of ``minimax``; ``low`` is what float64 cut off."""
    network = EquivariantTransformer(products)
    for values, suffix, unit in ((theta, "", 1.0), (low, "_low", 0.0)):
        heads, readout = minimax.split(values, products)
        with torch.no_grad():
            scores, value_rows = getattr(network, f"scores{suffix}"), getattr(network, f"values{suffix}")
            scores[0, 0] = value_rows[0, 0] = unit
            for h, (q, v) in enumerate(heads, start=1):
                scores[h, : h + 1], value_rows[h, : h + 1] = q, v
            getattr(network, f"readout{suffix}").copy_(readout)
    return network


def rounding_error(network: EquivariantTransformer, radius: float, dtype: torch.dtype) -> float:
    """Mean relative Frobenius error at ‖A‖₂ = radius against extended precision: approximation and rounding."""
    generator = torch.Generator().manual_seed(SEED)
    A = torch.randn(24, 12, 12, dtype=torch.float64, generator=generator)
    A = (A * (radius / torch.linalg.matrix_norm(A, 2))[:, None, None]).to(dtype)
    out = torch.empty_like(A)
    eager.exponential(A, None, network.packed(dtype, A.device), network.identity, 0, out)
    if dtype != torch.float64:
        truth = torch.linalg.matrix_exp(A.double())
        return float(
            (torch.linalg.matrix_norm(out.double() - truth) / torch.linalg.matrix_norm(truth)).mean()
        )
    exact = _extended_exp(A.numpy())
    error = np.linalg.norm((out.numpy() - exact).astype(float), axis=(1, 2))
    return float((error / np.linalg.norm(exact.astype(float), axis=(1, 2))).mean())


def _extended_exp(A: np.ndarray) -> np.ndarray:
    """Exp in numpy's long double by Taylor with scaling: the reference for float64 rounding."""
    X = A.astype(np.longdouble) / 64
    term: np.ndarray = np.broadcast_to(np.eye(A.shape[-1], dtype=np.longdouble), A.shape)
    total = term
    for k in range(1, 24):
        term = term @ X / k
        total = total + term
    for _ in range(6):
        total = total @ total
    return total


def candidates(dtype: str, products: int, pools: dict[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Weight vectors (high, low) worth judging, best ε first; ``pools`` remembers float64 pools for deeper tiers."""
    epsilon = TARGETS[dtype][0]
    if dtype == "float64":
        theta, radius = schemes.start(products, epsilon)
        theta, _ = minimax.polish(theta, products, radius)
        return [minimax.from_fixed(theta)]
    if (dtype, products) in SEARCHES:
        radius, rounds, starts = SEARCHES[dtype, products]
        if products == 3:
            first = schemes.random_starts(3, 64, SEED)
        else:
            first = (
                schemes.sastre(4)[None]
                if products == 4
                else minimax.lift(pools[products - 1][:8], products - 1)
            )
        pool, _ = minimax.search(first, products, radius, rounds=rounds, starts=starts, seed=SEED)
    else:
        # Degree 2^m is reached by any scheme here: the minimax radius is about that of the Taylor remainder.
        radius = (epsilon * math.factorial(2**products + 1)) ** (1 / (2**products + 1))
        first = schemes.random_starts(products, 64, SEED)
        pool, _ = minimax.search(first, products, radius, rounds=2, starts=16, seed=SEED)
    pools[products] = pool
    return [(theta, torch.zeros_like(theta)) for theta in pool]


def tier(
    dtype: str, products: int, pools: dict[int, Tensor]
) -> tuple[EquivariantTransformer, dict[str, Any], float]:
    """Train one tier.

    Returns:
        The network, its configuration and its measured rounding error at its radius.
    """
    epsilon = TARGETS[dtype][0]
    judged = []
    for high, low in candidates(dtype, products, pools)[:8]:
        network = network_of(high, low, products)
        radius = ExponentialError.of(network).radius(epsilon)
        if radius and not bool(low.any()):
            # Once more at the radius itself, where the fit matters, and for the maximum instead of the mean square.
            refit, _ = minimax.equalise(high[None], products, radius)
            refitted = network_of(refit[0], low, products)
            again = ExponentialError.of(refitted).radius(epsilon)
            if again > radius:
                network, radius = refitted, again
        if radius:
            judged.append((network, radius, rounding_error(network, radius, _working_dtype(dtype))))
    best = max(radius for _, radius, _ in judged)
    network, radius, rounding = min((j for j in judged if j[1] >= 0.995 * best), key=lambda j: j[2])
    error = ExponentialError.of(network)
    config = {
        "products": products,
        "radius": radius,
        "majorant_radius": error.radius(epsilon, "majorant", ratio=MAJORANT_RATIO),
        "epsilon": epsilon,
    }
    return network, config, rounding


def _working_dtype(dtype: str) -> torch.dtype:
    return torch.float64 if dtype == "float64" else torch.float32


def train(dtype: str) -> tuple[EquivariantExponential, list[float]]:
    """All tiers of one precision, shallow to deep, and their measured errors."""
    pools: dict[int, Tensor] = {}
    networks, configs, rounding = [], [], []
    for products in range(1, TARGETS[dtype][1] + 1):
        network, config, measured = tier(dtype, products, pools)
        print(
            f"{dtype}: {products} products → radius {config['radius']:g}, measured error {measured:.2g}",
            flush=True,
        )
        networks.append(network)
        configs.append(config)
        rounding.append(measured)
    result = EquivariantExponential(configs, MAX_SQUARINGS)
    for target, source in zip(result.tiers, networks, strict=True):
        target.load_state_dict(source.state_dict())
    return result, rounding


def add_to_manifest(entry: dict[str, Any], path: Path) -> None:
    """Insert or replace one entry, sorted by function and name."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rest = [other for other in content["checkpoints"] if other["name"] != entry["name"]]
    content["checkpoints"] = sorted([*rest, entry], key=lambda e: (e["function"], e["name"]))
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m neural_expm.training equivariant``."""
    parser = argparse.ArgumentParser(prog="python -m neural_expm.training equivariant", description=__doc__)
    parser.add_argument("--dtype", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--out", type=Path, default=PACKAGE / "weights", help="folder of weight files")
    parser.add_argument("--manifest", type=Path, default=manifest_path())
    options = parser.parse_args(argv)
    for dtype in TARGETS if options.dtype == "all" else [options.dtype]:
        network, rounding = train(dtype)
        name = f"expm-equivariant-{dtype}"
        stored = save(
            network, options.out / f"{name}.safetensors", name=name, function="expm", family="equivariant"
        )
        bound = network.ladder.rungs[-1].bound
        entry = {
            "name": name,
            "function": "expm",
            "family": "equivariant",
            "dtype": dtype,
            "domain": {
                "n": [0, None],
                "norm": "2",
                "radius": network.radius,
                "structure": "general",
                "complex": True,
            },
            "bound": bound,
            "bound_kind": "certified",
            **stored,
            "repo": "",
            "revision": "",
            "trained_by": f"python -m neural_expm.training equivariant --dtype {dtype}",
            "license": "Apache-2.0",
            "certificate": {"tiers": network.config["tiers"]},
            "measured": {
                "error_at_radius": rounding,
                "what": "mean relative Frobenius error, 24 Gaussian 12 × 12 matrices with ‖A‖₂ = radius, "
                f"computed in {str(_working_dtype(dtype)).removeprefix('torch.')}",
                "seed": SEED,
            },
            "card": "Softmax-free transformer, minimax on discs of the complex plane, scaling and squaring outside.",
        }
        add_to_manifest(entry, options.manifest)
    return 0
