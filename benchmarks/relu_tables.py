"""Fill the README's tables about ReLU networks from benchmarks/results, between their markers.

python benchmarks/relu_tables.py            # after relu_bounds.py, relu_footprint.py and the frames study
"""

from __future__ import annotations

from typing import Any

from readme_tables import Tables, markdown, rewrite


def proven(results: dict[str, Any]) -> str:
    """Constructed networks: what is proven, and how near an adversary comes."""
    header = (
        "function",
        "n",
        "domain",
        "proven error",
        "worst found",
        "hidden layers",
        "width",
        "parameters",
    )
    rows = []
    for entry in results["tightness"]:
        exp = entry["function"] == "expm"
        domain = (
            f"‖A‖_∞ ≤ {entry['radius']:g}"
            if exp
            else f"spd, spectrum in [{entry['low']:g}, {entry['high']:g}]"
        )
        unit = f"·e^{entry['radius']:g}" if exp else "·‖A^½‖"
        rows.append(
            (
                "exp" if exp else "sqrt",
                str(entry["n"]),
                domain,
                f"{entry['proven']:.1e}{unit}",
                f"{entry['worst_found']:.1e}",
                str(entry["depth"]),
                str(entry["width"]),
                f"{entry['parameters']:,}",
            )
        )
    return markdown(header, rows)


def footprint(results: dict[str, Any]) -> str:
    """Exported C files, one row a checkpoint: bytes, errors, and what int8 weights change."""
    header = ("checkpoint", "constants", "with int8", "code", "scratch", "error", "with int8")
    int8 = {entry["name"]: entry for entry in results["rows"] if entry["weights"] == "int8"}
    rows = []
    for entry in results["rows"]:
        if entry["weights"] == "int8":
            continue
        small = int8.get(entry["name"])
        if small:
            error = f"{entry['mean_error']:.2%} mean, {entry['p95_error']:.2%} p95"
        else:
            error = f"{entry['proven_error']:.1e} proven"
        rows.append(
            (
                f"`{entry['name']}`",
                f"{entry['constants']:,} B",
                f"{small['constants']:,} B" if small else "",
                f"{entry['code']:,} B",
                f"{entry['scratch']:,} B",
                error,
                f"{small['mean_error']:.2%} mean" if small else "",
            )
        )
    return markdown(header, rows)


def frames(results: dict[str, Any]) -> str:
    """What the structure around a trained network is worth."""
    header = (
        "n",
        "outside the network",
        "matrix products",
        "frame alone",
        "with the network (≤ 50k)",
        "int8",
    )
    names = {
        (0, -1): "nothing",
        (0, 1): "trace shift, residual around I + B",
        (1, 1): "… and one squaring",
        (1, 2): "… and residual around I + B + B²/2",
    }
    rows = []
    for entry in results["rows"]:
        run = entry["run"]
        means = [f"{entry[key]['mean']:.2%}" for key in ("frame_alone", "relative_error", "int8")]
        name = names[run["squarings"], run["baseline"]]
        rows.append((str(run["n"]), name, str(entry["matrix_products"]), *means))
    return markdown(header, rows)


TABLES: Tables = {
    "relu-proven": ("relu_bounds.json", proven),
    "relu-footprint": ("relu_footprint.json", footprint),
    "relu-frames": ("relu_frames.json", frames),
}


if __name__ == "__main__":
    rewrite(TABLES)
