"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from ..errors import NeuralExpmError
from . import plot, readme, suite, tables
from .measure import CLOCKS
from .workloads import SUITES, select

# Seconds for all timings of a suite; truths and warm-up come on top.
SECONDS = {"quick": 4.0, "apps": 60.0, "functions": 40.0, "times": 30.0}
THREADS = 2


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        prog="python -m neural_expm.bench",
        description="Speed and error of neural_expm beside torch and SciPy. Exit status 1 if an error gate fails.",
    )
    result.add_argument("--suite", choices=sorted(SUITES), default="quick", help="default: quick")
    result.add_argument("--only", nargs="+", metavar="NAME", help="workloads of the suite; default: all")
    result.add_argument("--threads", type=int, help=f"of torch; default: OMP_NUM_THREADS, else {THREADS}")
    result.add_argument("--seconds", type=float, help="time spent measuring; default: by suite")
    result.add_argument(
        "--clock",
        choices=sorted(CLOCKS),
        default="wall",
        help="cpu: processor time, for a busy machine; one thread",
    )
    result.add_argument("--seed", type=int, default=0, help="of the matrices; default: 0")
    result.add_argument("--json", type=Path, metavar="PATH", help="write every figure")
    result.add_argument(
        "--plot", type=Path, metavar="PATH", help="write a bar chart of the ratios (needs matplotlib)"
    )
    result.add_argument(
        "--readme",
        type=Path,
        metavar="PATH",
        help="measure nothing: rewrite the result tables of this README",
    )
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    options = parser().parse_args(arguments)
    if options.readme:
        print(f"{options.readme}: {', '.join(readme.update(options.readme)) or 'no block to rewrite'}")
        return 0
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    elif "OMP_NUM_THREADS" not in os.environ:  # torch has read it
        torch.set_num_threads(THREADS)
    workloads = select(options.suite, options.only)
    seconds = SECONDS[options.suite] if options.seconds is None else options.seconds
    print(tables.header({"environment": suite.environment(options.clock)}))
    print(tables.terminal_head(), flush=True)
    records = []
    for record in suite.run(workloads, seconds, options.seed, options.clock):
        records.append(record)
        print(tables.terminal_rows(record), flush=True)
    result = suite.result(options.suite, records, seconds, options.clock)
    print(tables.closing(result))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        plot.plot(result, options.plot)
    return 1 if result["summary"]["failed"] else 0


if __name__ == "__main__":
    os.environ.setdefault("NEURAL_EXPM_COMPILE", "1")  # measure the compiled kernels, not the wait for them
    try:
        sys.exit(main())
    except NeuralExpmError as error:
        sys.exit(str(error))
