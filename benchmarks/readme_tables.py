"""What the scripts share that put tables into README.md, between ``<!-- results:NAME -->`` and its end mark."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# name of a block → (files in results/, their contents → Markdown)
Tables = dict[str, tuple[str | tuple[str, ...], Callable[..., str]]]


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]], numbers: bool = False) -> str:
    """A table; ``numbers`` puts all columns but the first to the right."""
    lines = [list(header), *[list(row) for row in rows]]
    lines.insert(1, ["---", *["--:" if numbers else "---"] * (len(lines[0]) - 1)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(text: str, tables: Tables) -> str:
    """``text`` with every table brought up to date."""
    for name, (files, table) in tables.items():
        paths = [RESULTS / file for file in ((files,) if isinstance(files, str) else files)]
        content = table(*(json.loads(path.read_text(encoding="utf-8")) for path in paths))
        pattern = re.compile(rf"(<!-- results:{name} -->\n).*?(<!-- /results -->)", re.S)
        text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


def rewrite(tables: Tables) -> None:
    """Bring README.md up to date."""
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8"), tables), encoding="utf-8")
