"""The README's tables of peak memory and of speed against the batch, from the files in results/.

python benchmarks/speed_tables.py
"""

from __future__ import annotations

from itertools import product
from typing import Any

from readme_tables import Tables, markdown, rewrite


def memory(results: dict[str, Any]) -> str:
    """Peak of forward and backward as a share of torch's."""
    rows = [
        (
            r["name"],
            f"{r['torch']['allocated'] / 2**20:.1f}",
            *(
                f"{r[kernel]['allocated'] / 2**20:.2f} ({r[f'{kernel} / torch']:.0%})"
                for kernel in ("compiled", "assembled", "eager")
            ),
        )
        for r in results["rows"]
    ]
    head = ("workload", "torch, MiB", "compiled, MiB", "assembled, MiB", "eager, MiB")
    return markdown(head, rows, numbers=True)


def small(results: dict[str, Any]) -> str:
    """Times faster than torch for n ≤ 4, forward and with backward."""
    rows = []
    for r in results["rows"]:
        ns = r["ns"]
        if r["batch"] < 10_000 or "torch" not in ns:
            continue
        both = f"{ns['torch, backward'] / ns['expm, backward']:.1f}×" if "torch, backward" in ns else "–"
        rows.append(
            (
                f"{r['n']} × {r['n']}",
                f"{r['batch']:,}",
                f"{ns['expm']:.1f}",
                f"{ns['torch'] / ns['expm']:.1f}×",
                both,
                f"{r['error']['expm']:.1e}",
                f"{r['error']['torch']:.1e}",
            )
        )
    return markdown(
        ("size", "batch", "ns a matrix", "forward", "forward + backward", "error", "torch's"),
        rows,
        numbers=True,
    )


def products(results: dict[str, Any]) -> str:
    """What share of our time the bare products of the plan would take."""
    shares = [r for r in results["rows"] if "products / expm" in r]
    batches = sorted({r["batch"] for r in shares})
    sizes = sorted({r["n"] for r in shares})
    found = {(r["n"], r["batch"]): f"{r['products / expm']:.0%}" for r in shares}
    rows = [(str(n), *(found.get((n, batch), "–") for batch in batches)) for n in sizes]
    return markdown(("n", *(f"batch {batch:,}" for batch in batches)), rows, numbers=True)


def processors(*results: dict[str, Any]) -> str:
    """Geometric means of both suites on each processor, from the files of EACH in its order."""
    rows, remaining = [], iter(results)
    for suite, kernel in product(SUITES, KERNELS):
        row = [f"{suite}, {kernel}"]
        for _ in FOLDERS:
            summary = next(remaining)["summary"]
            row += [f"{summary['forward']:.1f}×", f"{summary['forward_backward']:.1f}×"]
            row.append(f"{summary['worst_forward']:.2f}×, {summary['worst_forward_backward']:.2f}×")
        rows.append(row)
    columns = [f"{name}: {what}" for name in FOLDERS for what in ("forward", "with backward", "lowest")]
    return markdown(("suite and kernel", *columns), rows, numbers=True)


SUITES = ("apps", "functions")
KERNELS = {"compiled": "", "assembled": "_assembled", "torch operations alone": "_eager"}
FOLDERS = {"AMD": "", "Intel": "intel-avx512/"}
EACH = tuple(
    f"{folder}{suite}{kernel}.json"
    for suite, kernel, folder in product(SUITES, KERNELS.values(), FOLDERS.values())
)

TABLES: Tables = {
    "memory": ("memory.json", memory),
    "scaling-small": ("scaling_small.json", small),
    "scaling-products": ("scaling.json", products),
    "scaling-products-intel": ("intel-avx512/scaling.json", products),
    "processors": (EACH, processors),
}


if __name__ == "__main__":
    rewrite(TABLES)
