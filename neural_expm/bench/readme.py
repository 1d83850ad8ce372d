"""README tables from result files and the manifest: ``python -m neural_expm.bench --readme README.md``.

A block ``<!-- results:NAME -->`` … ``<!-- /results -->`` is rewritten if NAME is a suite of this benchmark (from
``benchmarks/results/NAME.json`` beside the README), a suite with one of ``WITHOUT`` behind it (in a sentence), or
``models``; other blocks belong to others and stay as they are.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..manifest import Checkpoint, list_models
from .measure import geometric_mean
from .tables import closing, markdown
from .workloads import SUITES

BLOCK = re.compile(r"(<!-- results:([\w-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
RESULTS = Path("benchmarks") / "results"
# What a result file with this behind the name of its suite was measured without.
WITHOUT = {"_assembled": "Without a compiler", "_eager": "With torch operations alone"}


def update(readme: Path) -> list[str]:
    """Rewrite the blocks of a README; returns their names.

    Raises:
        InputError: a result file that a block needs is missing or is not one of this benchmark.
    """
    results = readme.parent / RESULTS
    done: list[str] = []

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        suite, _, kernel = name.partition("_")
        if name in SUITES:
            body = markdown(read(results / f"{name}.json"))
        elif suite in SUITES and f"_{kernel}" in WITHOUT:
            found = closing(read(results / f"{name}.json")).replace("\n", "; ")
            body = f"{WITHOUT[f'_{kernel}']}: {found}."
        elif name == "models":
            body = models([read(path) for path in _measured(results)], list_models())
        else:
            return match[0]
        done.append(name)
        return f"{match[1]}{body}\n{match[3]}"

    text = readme.read_text(encoding="utf-8")
    readme.write_text(BLOCK.sub(replace, text), encoding="utf-8")
    return done


def read(path: Path) -> dict[str, Any]:
    """A file that ``--json`` wrote."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"bench: cannot read {path}: {error}; write it with "
            f"python -m neural_expm.bench --suite {path.stem.partition('_')[0]} --json {path}"
        ) from error
    if not isinstance(result, dict) or not {"suite", "environment", "workloads", "summary"} <= set(result):
        raise InputError(f"bench: {path} was not written by python -m neural_expm.bench --json")
    return result


def models(results: list[dict[str, Any]], records: list[Checkpoint]) -> str:
    """Function × domain × promised error × measured error × speed, a row for each checkpoint of the manifest."""
    lines = [
        "| function | checkpoint | domain | promised error | measured error | speed |",
        "|---|---|---|--:|--:|--:|",
    ]
    for record in records:
        used = [w for result in results for w in result["workloads"] if w["checkpoint"] == record.name]
        lines.append(
            f"| `{record.function}` | `{record.name}` | {record.domain} | {_promise(record)} | "
            f"{_measured_error(used)} | {_speed(used)} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            "Promised: relative, before rounding, after s squarings. Measured: largest relative Frobenius error over "
            "the workloads of the benchmark. Speed: geometric mean over them, forward.",
        ]
    )


def _measured(results: Path) -> list[Path]:
    return [path for suite in ("apps", "functions", "models") if (path := results / f"{suite}.json").exists()]


def _promise(record: Checkpoint) -> str:
    tiers = record.certificate.get("tiers", [])
    before = f"{max(tier['epsilon'] for tier in tiers):.1e} · 2ˢ ≤ " if tiers else ""
    return f"{before}{record.bound:.1e} ({record.bound_kind})"


def _measured_error(used: list[dict[str, Any]]) -> str:
    return f"{max(w['forward']['error']['ours'] for w in used):.1e}" if used else "–"


def _speed(used: list[dict[str, Any]]) -> str:
    if not used:
        return "–"
    ratio = geometric_mean([w["forward"]["ratio"] for w in used])
    against_scipy = geometric_mean([w["scipy_ns"] / w["forward"]["ours_ns"] for w in used])
    return f"{ratio:.1f}× {used[0]['baseline']}, {against_scipy:.0f}× scipy"
