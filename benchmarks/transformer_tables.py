"""Fill the README's tables about the encoder–decoder transformer from benchmarks/results, between their markers.

python benchmarks/transformer_tables.py     # after `python -m neural_expm.training evaluate` and `… study`
"""

from __future__ import annotations

from typing import Any

from readme_tables import Tables, markdown, rewrite


def checkpoints(content: dict[str, Any]) -> str:
    """One row a shipped checkpoint: errors, bounds with their coverage, gradients."""
    header = ("checkpoint", "matrices", "mean", "median", "p95", "max")
    header += ("95 % bound (covers)", "99 % bound (covers)", "gradient, mean")
    rows = []
    for name, figures in content["results"].items():
        if name == "paper":
            continue
        error = figures["relative_error"]
        bounds = []
        for coverage in ("0.95", "0.99"):
            bound = max(b[coverage] for b in figures["conformal_by_size"].values())
            covers = [c[coverage] for c in figures["coverage_by_size"].values()]
            bounds.append(f"{bound:.2%} ({min(covers):.1%}–{max(covers):.1%})")
        quantiles = [f"{error[key]:.3%}" for key in ("mean", "median", "p95")]
        parameters = {k: v for k, v in figures["distribution"].items() if k not in ("distribution", "weight")}
        on = ", ".join(
            [figures["distribution"]["distribution"], *(f"{k} {v:g}" for k, v in parameters.items())]
        )
        gradient = f"{figures['gradient_error']['mean']:.2%}"
        rows.append((f"`{name}`", on, *quantiles, f"{error['max']:.1%}", *bounds, gradient))
    return markdown(header, rows)


def parts(content: dict[str, Any]) -> str:
    """What each part of a checkpoint is worth: mean error with the network or the last products left out."""
    names = ("baseline", "baseline with last products", "network, no last products", "network")
    rows = []
    for name, figures in content["results"].items():
        if name != "paper":
            found = [figures["parts"].get(part) for part in names]
            rows.append((f"`{name}`", *("" if part is None else f"{part['mean']:.3%}" for part in found)))
    return markdown(("mean error", *names), rows)


def paper(content: dict[str, Any]) -> str:
    """The fractions of matrices within each tolerance on the setting of arXiv 2602.07800."""
    rows = []
    for n in ("3", "4", "5"):
        for family, figures in content["results"]["paper"][n].items():
            within = [f"{figures['d1_within'][t]:.2%}" for t in ("0.05", "0.02", "0.01", "0.005")]
            rows.append((n, family, *within))
    return markdown(("n", "network", "within 5 %", "2 %", "1 %", "0.5 %"), rows)


def study(content: dict[str, Any]) -> str:
    """Mean errors of the study, a row a function and size."""
    models = list(content["table"][0]["mean_error"])
    rows = []
    for row in content["table"]:
        errors = [f"{row['mean_error'][model]:.2%}" for model in models]
        rows.append(
            (row["function"], str(row["n"]), *errors, row["best_encoding"], ", ".join(row["auto_chose"]))
        )
    return markdown(("function", "n", *models, "best", "`auto` chose"), rows)


def numerals(content: dict[str, Any]) -> str:
    """Mean error of each numeral encoding, and the steps that its budget bought."""
    rows = [(f"`{c['model']}`", str(c["steps"]), f"{c['error']['mean']:.2%}") for c in content["cells"]]
    return markdown(("encoding", "steps", "mean error"), rows)


TABLES: Tables = {
    "transformer": ("transformer.json", checkpoints),
    "transformer-parts": ("transformer.json", parts),
    "transformer-paper": ("transformer.json", paper),
    "transformer-study": ("transformer_study.json", study),
    "transformer-numerals": ("transformer_numerals.json", numerals),
}


if __name__ == "__main__":
    rewrite(TABLES)
