"""A bar chart of the ratios, on a log axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError


def plot(result: dict[str, Any], path: Path) -> None:
    """Write the chart; the suffix of ``path`` chooses the format.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("bench: --plot needs matplotlib; pip install matplotlib") from error
    records = result["workloads"][::-1]
    figure = Figure(figsize=(8, 0.9 + 0.42 * len(records)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for offset, key, label, colour in (
        (0.2, "forward", "forward", "#4477aa"),
        (-0.2, "forward_backward", "forward + backward", "#ee6677"),
    ):
        ratios = [r[key]["ratio"] for r in records]
        low = [max(0.0, r[key]["ratio"] - r[key]["ratio_quartiles"][0]) for r in records]
        high = [max(0.0, r[key]["ratio_quartiles"][1] - r[key]["ratio"]) for r in records]
        at = [i + offset for i in range(len(records))]
        bars = axes.barh(
            at,
            [r - 1 for r in ratios],
            0.4,
            left=1,
            xerr=[low, high],
            color=colour,
            label=label,
            error_kw={"lw": 0.8},
        )
        axes.bar_label(bars, [f"{ratio:.1f}×" for ratio in ratios], padding=4, fontsize=8)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    axes.set_xlim(min(0.5, left / 1.6), right * 1.6)
    axes.set_yticks(range(len(records)), [r["name"] for r in records])
    baseline = "torch.linalg.matrix_exp" if records[0]["baseline"] == "torch" else "the exact algorithm"
    e = result["environment"]
    axes.set_xlabel(
        f"times faster than {baseline}; bars: median, whiskers: quartiles\n"
        f"torch {e['torch']}, {e['cpu']}, {e['threads']} threads"
    )
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
