"""Largest certified ‖A‖₂ for each number of products: `python benchmarks/radii.py` rewrites the README's table.

Proves every figure again from the shipped weights before printing it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import neural_expm
from neural_expm.certificate import ExponentialError
from neural_expm.checkpoints import load_record

ROOT = Path(__file__).resolve().parent.parent
# Published radii: Taylor degree 18 as in torch (Bader, Blanes, Casas 2019); GraphMatFunData (Jarlebring, Fasi, Ringh).
TAYLOR_18 = {("float32", 5): 2.86, ("float64", 5): 1.09}
PUBLISHED = {("float32", 4): 2.24, ("float32", 5): 4.58, ("float32", 6): 6.50}
PUBLISHED |= {("float64", 4): 0.68, ("float64", 5): 1.99, ("float64", 6): 3.17}


def measure() -> list[dict]:
    """One row for each tier of each precision."""
    rows = []
    for record in neural_expm.list_models("expm"):
        if record.family != "equivariant":
            continue
        network = load_record(record)
        for tier, stated in zip(network.tiers, record.certificate["tiers"], strict=True):
            proven = ExponentialError.of(tier).disc(stated["radius"])
            key = (record.dtype, stated["products"])
            rows.append(
                {
                    "precision": record.dtype,
                    "products": stated["products"],
                    "radius": stated["radius"],
                    "epsilon": proven,
                    "taylor18": TAYLOR_18.get(key),
                    "published": PUBLISHED.get(key),
                }
            )
    return rows


def table(rows: list[dict]) -> str:
    """The README's Markdown table."""
    lines = [
        "| precision | products | certified ‖A‖₂ ≤ | proven ε | Taylor 18 (torch) | best published |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        others = (f"{row[key]:g}" if row[key] else "" for key in ("taylor18", "published"))
        cells = [row["precision"], row["products"], f"{row['radius']:g}", f"{row['epsilon']:.2g}", *others]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Write the JSON and the table."""
    rows = measure()
    (ROOT / "benchmarks/results/radii.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    block = f"<!-- results:radii -->\n{table(rows)}\n<!-- /results -->"
    readme.write_text(
        re.sub(r"<!-- results:radii -->.*?<!-- /results -->", block, text, flags=re.S), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
