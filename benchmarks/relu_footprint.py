"""What the exported C99 files of the ReLU checkpoints cost, and how well they compute.

    python benchmarks/relu_footprint.py     # needs gcc and binutils; writes results/relu_footprint.json

Constants are the weights in the compiled object, code its machine instructions (gcc -Os, this machine's
architecture), scratch the arrays on the stack. Errors: trained networks as measured on held-out matrices
(manifest); constructed ones as proven.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from neural_expm import manifest  # noqa: E402
from neural_expm.networks.relu import TrainedReLUNet  # noqa: E402
from neural_expm.training.export import find_network  # noqa: E402
from neural_expm.training.export_c import scratch_bytes, write_c  # noqa: E402
from neural_expm.training.export_program import program_of  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "relu_footprint.json"


def sections(source: Path) -> dict[str, int]:
    """Bytes of the sections of the compiled object."""
    target = source.with_suffix(".o")
    flags = ["-std=c99", "-Wall", "-Werror", "-Os", "-fno-asynchronous-unwind-tables"]
    subprocess.run(["gcc", *flags, "-c", "-o", target, source], check=True)
    listing = subprocess.run(["size", "-A", target], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in listing.splitlines() if line.startswith(".")]
    return {row[0]: int(row[1]) for row in rows}


def footprint(name: str, weights: str, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    record = manifest.find(name)
    network, _ = find_network(name)
    if weights == "int8":
        network = network.quantized()
    program = program_of(network, f"{name}-{weights}")
    (source,) = write_c(program, folder)
    sizes = sections(source)
    key = "int8" if weights == "int8" else "relative_error"
    trained = isinstance(network, TrainedReLUNet)
    return {
        "name": name,
        "weights": weights,
        "n": program.n,
        "constants": sum(size for section, size in sizes.items() if section.startswith(".rodata")),
        "code": sum(size for section, size in sizes.items() if section.startswith(".text")),
        "scratch": scratch_bytes(program),
        "source": source.stat().st_size,
        "mean_error": record.measured[key]["mean"] if trained else None,
        "p95_error": record.measured[key]["p95"] if trained else None,
        "proven_error": None if trained else record.bound,
    }


def main() -> None:
    """Write the JSON."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for record in manifest.list_models():
            if record.family != "relu":
                continue
            kinds = ["float64"] if record.bound_kind == "certified" else ["float32", "int8"]
            rows += [footprint(record.name, kind, Path(folder)) for kind in kinds]
    compiler = subprocess.run(
        ["gcc", "-dumpfullversion"], check=True, capture_output=True, text=True
    ).stdout.strip()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "command": "python benchmarks/relu_footprint.py",
                "machine": platform.machine(),
                "gcc": compiler,
                "rows": rows,
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
