"""Which encoding suits which function: ``python -m neural_expm.training study``.

Every run has the same budget of processor seconds, the same data and no frame (the network sees A and returns
f(A)), so that differences come from the encoding. ``auto`` is not told the answer: it races the encodings on
a tenth of the budget each and spends the rest on the winner.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from neural_expm.networks.encodings import ENCODINGS
from neural_expm.networks.numerals import NUMERALS
from neural_expm.training.config import RunConfig
from neural_expm.training.datasets import held_out
from neural_expm.training.files import write_json
from neural_expm.training.fit import Run
from neural_expm.training.metrics import relative_error, summary

#: What is learned, and on which matrices.
TASKS: dict[str, dict[str, Any]] = {
    "expm": {"distribution": "ginibre", "radius": 2.0},
    "sign": {"distribution": "sign_symmetric", "gap": 0.2},
    "sqrtm": {"distribution": "spd", "condition": 100.0},
}
MODELS = (*ENCODINGS, "auto", "mlp")
ALL_MODELS = (*MODELS, *NUMERALS)
SIZES = (4, 8)
SEEDS = (0, 1, 2)
#: Small enough that the slowest encoding still makes hundreds of steps on a small budget.
TRANSFORMER = {"width": 64, "heads": 4, "encoder_layers": 2, "decoder_layers": 1, "hidden": 128}
MLP = {"hidden": 384, "layers": 4}
BATCH = 64
#: Share of the budget that ``auto`` gives each encoding in its race.
RACE = 0.1
#: Steps timed to turn a budget of seconds into a number of steps.
TIMED = 8
TEST_COUNT = 2000


def study_config(model: str, function: str, n: int, seed: int, steps: int) -> RunConfig:
    """Return the run of one cell of the study; ``model`` is an encoding or "mlp"."""
    frame = {"kind": "raw", "symmetric": function != "expm"}
    network = (
        {"frame": frame, **MLP} if model == "mlp" else {"encoding": model, "frame": frame, **TRANSFORMER}
    )
    return RunConfig(
        name=f"study-{function}-{model}-{n}-{seed}",
        function=function,
        family="mlp" if model == "mlp" else "transformer",
        network=network,
        data=[TASKS[function]],
        sizes=[n],
        batch=BATCH,
        steps=steps,
        learning_rate=2e-3,
        warmup=max(1, steps // 20),
        seed=seed,
    )


def seconds_a_step(model: str, function: str, n: int) -> float:
    """Return the processor seconds of one training step, the first ones (allocation, caches) left out."""
    run = Run(study_config(model, function, n, 0, 10**6), Path())
    for _ in range(3):
        run.advance()
    began = time.process_time()
    for _ in range(TIMED):
        run.advance()
    return (time.process_time() - began) / TIMED


def train(model: str, function: str, n: int, seed: int, budget: float) -> tuple[Run, dict[str, Any]]:
    """Train one cell within ``budget`` processor seconds; ``auto`` races the encodings first."""
    if model != "auto":
        steps = max(10, int(budget / seconds_a_step(model, function, n)))
        run = Run(study_config(model, function, n, seed, steps), Path(tempfile.gettempdir()))
        while run.step < steps:
            run.advance()
        return run, {"steps": steps}
    race = {
        encoding: train(encoding, function, n, seed, RACE * budget)[0].validate()["mean"]
        for encoding in ENCODINGS
    }
    chosen = min(race, key=lambda encoding: race[encoding])
    run, facts = train(chosen, function, n, seed, (1 - RACE * len(ENCODINGS)) * budget)
    return run, {**facts, "chosen": chosen, "race": race}


@torch.no_grad()
def measure(run: Run, function: str, n: int) -> dict[str, float]:
    """Return error quantiles of the averaged weights on the test split."""
    task = {key: value for key, value in TASKS[function].items() if key != "distribution"}
    matrices, values = held_out(function, TASKS[function]["distribution"], n, TEST_COUNT, **task)
    output = torch.cat([run.average(part) for part in matrices.float().split(500)])
    return summary(relative_error(output.double(), values))


def table(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a function and size: mean errors over seeds, the best encoding, auto's picks."""
    rows = []
    for function, n in sorted({(c["function"], c["n"]) for c in cells}):
        mine = [c for c in cells if (c["function"], c["n"]) == (function, n)]
        errors = {
            model: statistics.mean(c["error"]["mean"] for c in mine if c["model"] == model)
            for model in ALL_MODELS
            if any(c["model"] == model for c in mine)
        }
        encodings = {model: error for model, error in errors.items() if model in ENCODINGS}
        picks = [c["chosen"] for c in mine if c["model"] == "auto"]
        rows.append(
            {
                "function": function,
                "n": n,
                "mean_error": errors,
                "best_encoding": min(encodings, key=lambda e: encodings[e]) if encodings else "",
                "auto_chose": picks,
            }
        )
    return rows


def plot(cells: list[dict[str, Any]], path: Path) -> None:
    """Draw mean relative errors, a panel a function: bars are means over seeds, dots the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    functions = sorted({c["function"] for c in cells})
    sizes = sorted({c["n"] for c in cells})
    models = [model for model in ALL_MODELS if any(c["model"] == model for c in cells)]
    figure, axes = plt.subplots(1, len(functions), figsize=(4.2 * len(functions), 3.6), squeeze=False)
    for axis, function in zip(axes[0], functions, strict=True):
        for i, model in enumerate(models):
            for j, n in enumerate(sizes):
                key = (function, n, model)
                errors = [c["error"]["mean"] for c in cells if (c["function"], c["n"], c["model"]) == key]
                if not errors:
                    continue
                x = j + (i - (len(models) - 1) / 2) * 0.8 / len(models)
                label = model if j == 0 else None
                axis.bar(
                    x,
                    statistics.mean(errors),
                    width=0.75 / len(models),
                    color=f"C{i}",
                    label=label,
                    alpha=0.75,
                )
                axis.plot([x] * len(errors), errors, "k.", markersize=3)
        axis.set_yscale("log")
        axis.set_xticks(range(len(sizes)), [f"n = {n}" for n in sizes])
        axis.set_title(function)
    axes[0][0].set_ylabel("mean relative Frobenius error")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(models), fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m neural_expm.training study", description=__doc__)
    parser.add_argument("--budget", type=float, default=15.0, help="processor seconds a run")
    parser.add_argument("--models", nargs="+", choices=ALL_MODELS, default=list(MODELS))
    parser.add_argument("--functions", nargs="+", choices=sorted(TASKS), default=list(TASKS))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/transformer_study.json"))
    parser.add_argument("--plot", type=Path, default=Path("benchmarks/results/transformer_study.png"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    cells: list[dict[str, Any]] = _finished(options.out, options.budget)
    done = {(c["function"], c["n"], c["model"], c["seed"]) for c in cells}
    for seed in options.seeds:
        for function in options.functions:
            for n in options.sizes:
                for model in options.models:
                    if (function, n, model, seed) in done:
                        continue
                    run, facts = train(model, function, n, seed, options.budget)
                    cell = {"function": function, "n": n, "model": model, "seed": seed}
                    cells.append({**cell, **facts, "error": measure(run, function, n)})
                    print(f"{cell}  mean {cells[-1]['error']['mean']:.3%}", flush=True)
                    _write(options.out, cells, options.budget, argv)
    plot(cells, options.plot)
    return 0


def _finished(path: Path, budget: float) -> list[dict[str, Any]]:
    """Return the cells of an interrupted study with the same budget."""
    if not path.exists():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["cells"] if content["budget_seconds"] == budget else []


def _write(path: Path, cells: list[dict[str, Any]], budget: float, argv: list[str]) -> None:
    command = " ".join(["python -m neural_expm.training study", *argv])
    content = {"command": command, "budget_seconds": budget, "torch": str(torch.__version__)}
    write_json(path, {**content, "table": table(cells), "cells": cells})
