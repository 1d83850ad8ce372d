"""The same figures as text for a terminal and as Markdown for the README."""

from __future__ import annotations

from typing import Any


def terminal_head() -> str:
    """Column titles; ns are per matrix."""
    return (
        f"{'workload':<24} {'shape':>13} {'dtype':>9} {'':>8} {'scipy ns':>10} {'base ns':>10} {'ours ns':>10} "
        f"{'ratio':>7} {'err ours':>8} {'err base':>8} {'fallback':>8}"
    )


def terminal_rows(record: dict[str, Any]) -> str:
    """Two lines: forward, and forward + backward."""
    lines = []
    for key, label in (("forward", "fwd"), ("forward_backward", "fwd+bwd")):
        part = record[key]
        first = key == "forward"
        gate = "" if part["error"]["passed"] else f"  ERROR above {part['error']['limit']:.1e}"
        lines.append(
            f"{record['name'] if first else '':<24} {shape(record) if first else '':>13} "
            f"{record['dtype'] if first else '':>9} {label:>8} "
            f"{significant(record['scipy_ns']) if first else '':>10} "
            f"{significant(part['baseline_ns']):>10} {significant(part['ours_ns']):>10} {part['ratio']:>6.2f}× "
            f"{part['error']['ours']:>8.1e} {part['error']['baseline']:>8.1e} "
            f"{format(record['fallback'], '8.1%') if first else '':>8}{gate}"
        )
    return "\n".join(lines)


def header(result: dict[str, Any]) -> str:
    """Versions and machine, one line."""
    e = result["environment"]
    return (
        f"neural_expm {e['neural_expm']}, torch {e['torch']}, scipy {e['scipy']}, Python {e['python']}, "
        f"{e['system']}, {e['cpu']} ({e['cores']} cores), {e['device']}, {e['threads']} threads, {e['clock']} time"
    )


def closing(result: dict[str, Any]) -> str:
    """Geometric means and gates, one line or two."""
    s = result["summary"]
    lines = []
    if s["batched"]:
        lines.append(
            f"geometric mean over the {len(s['batched'])} batched workloads: forward {s['forward']:.2f}×, "
            f"forward + backward {s['forward_backward']:.2f}×; lowest of all: {s['worst_forward']:.2f}× and "
            f"{s['worst_forward_backward']:.2f}×"
        )
    lines.append(
        f"error gates: FAILED on {', '.join(s['failed'])}" if s["failed"] else "error gates: all passed"
    )
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """A table of all workloads, with the machine below it."""
    base = "torch" if all(r["baseline"] == "torch" for r in result["workloads"]) else "exact"
    lines = [
        f"| workload | batch × n | dtype | scipy, ns | {base}, ns | ours, ns | forward | forward + backward | "
        f"error | {base}'s | gradient error | {base}'s | fallback |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in result["workloads"]:
        f, b = r["forward"], r["forward_backward"]
        lines.append(
            f"| {r['source']} | {shape(r)} | {r['dtype']} | {significant(r['scipy_ns'])} | "
            f"{significant(f['baseline_ns'])} | {significant(f['ours_ns'])} | **{f['ratio']:.1f}×** | "
            f"**{b['ratio']:.1f}×** | {f['error']['ours']:.1e} | {f['error']['baseline']:.1e} | "
            f"{b['error']['ours']:.1e} | {b['error']['baseline']:.1e} | {r['fallback']:.0%} |"
        )
    lines += [
        "",
        f"Nanoseconds per matrix, forward. {closing(result).replace(chr(10), '; ')}.",
        f"{header(result)}.",
    ]
    return "\n".join(lines)


def shape(record: dict[str, Any]) -> str:
    """7880 × 4, or just n for one matrix."""
    dims = record["shape"]
    return f"{dims[0]} × {dims[-1]}" if len(dims) > 2 else f"1 × {dims[-1]}"


def significant(ns: float) -> str:
    """Three significant digits with thousands separated."""
    return f"{float(f'{ns:.3g}'):,.0f}" if ns >= 100 else f"{ns:.3g}"
