"""The README's tables of peak memory and of speed against the batch, from the files in results/.

python benchmarks/speed_tables.py
"""

from __future__ import annotations

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
    """What share of our time the bare products of the plan would take, and the processor."""
    shares = [r for r in results["rows"] if "products / expm" in r]
    batches = sorted({r["batch"] for r in shares})
    sizes = sorted({r["n"] for r in shares})
    found = {(r["n"], r["batch"]): f"{r['products / expm']:.0%}" for r in shares}
    rows = [(str(n), *(found.get((n, batch), "–") for batch in batches)) for n in sizes]
    table = markdown(("n", *(f"batch {batch:,}" for batch in batches)), rows, numbers=True)
    return f"{table}\n\n{results['processor']}, {results['threads']} threads."


# The benchmark's files of this machine and of another one, measured before, each beside its counterpart.
OTHER = "amd-avx512/"
SPEEDS = tuple(
    f"{folder}{suite}{kernel}.json"
    for suite in ("apps", "functions")
    for kernel in ("", "_assembled", "_eager")
    for folder in ("", OTHER)
)


def speeds(*results: dict[str, Any]) -> str:
    """The geometric means and the lowest ratios of each of SPEEDS, with the processor that they were measured on."""
    keys = ("forward", "forward_backward", "worst_forward", "worst_forward_backward")
    rows = [
        (f"`{file}`", r["environment"]["cpu"], *(f"{r['summary'][key]:.2f}×" for key in keys))
        for file, r in zip(SPEEDS, results, strict=True)
    ]
    head = (
        "file",
        "processor",
        "forward",
        "forward + backward",
        "lowest forward",
        "lowest forward + backward",
    )
    return markdown(head, rows)


TABLES: Tables = {
    "memory": ("memory.json", memory),
    "scaling-small": ("scaling_small.json", small),
    "scaling-products": ("scaling.json", products),
    "scaling-products-other": (f"{OTHER}scaling.json", products),
    "speeds": (SPEEDS, speeds),
}


if __name__ == "__main__":
    rewrite(TABLES)
