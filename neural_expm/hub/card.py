"""The model card of a checkpoint: everything in it comes from the record, nothing is typed by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..manifest import Checkpoint

CALL = {"expm": "torch.linalg.matrix_exp", "sign": "the matrix sign", "sqrtm": "the principal square root"}
PROMISE = {
    "certified": "proven for every matrix of the domain before rounding, and proven again from the weights "
    "whenever they are loaded",
    "statistical": "measured on random matrices and stated with a distribution-free bound",
}


def model_card(record: Checkpoint) -> str:
    """The model card of a checkpoint, as the text of ``README.md``, metadata included."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    name = record.repo or "org/name"
    results = [
        EvalResult(
            task_type="matrix-function",
            task_name=record.function,
            dataset_type="domain",
            dataset_name=str(record.domain),
            metric_type=key,
            metric_value=value,
        )
        for key, value in [
            (f"relative error bound ({record.bound_kind})", record.bound),
            *_figures(record.measured),
        ]
    ]
    data = ModelCardData(
        license=record.license.lower(),
        library_name="neural_expm",
        tags=["neural_expm", "matrix-functions", record.function, record.family],
        model_name=record.name,
        eval_results=results,
    )
    measured = _table(("measured", "value"), [(key, _text(value)) for key, value in _leaves(record.measured)])
    certified = "\n".join(_certificate(record.certificate))
    structure = f"\n{record.card}\n" if record.card else ""
    text = f"""---
{data.to_yaml()}
---

# {record.name}

A network of the family `{record.family}` that computes `{record.function}` ({CALL[record.function]}) in
{record.dtype}, for `neural_expm` (`pip install neural-expm`). Weights are
safetensors; no code is run from this repository.
{structure}
## How to use

```python
import neural_expm

F = neural_expm.{record.function}(A, model="{name}")    # A: (*, n, n)
net = neural_expm.load("{name}")            # a torch.nn.Module
```

Matrices outside the domain go, alone, to the exact algorithm.  `"{name}@COMMIT"` pins a commit, which
is fetched once and then loaded from the cache without a request.

## Domain

{record.domain}.

## Error

Relative error ≤ {record.bound:.3g} on the domain: {record.bound_kind}, that is {PROMISE[record.bound_kind]}.

{certified}
{measured}

## Training

{f"`{record.trained_by}`" if record.trained_by else "The command was not recorded."}

## Files

`model.safetensors`: {record.size} bytes, sha256 `{record.sha256}`;
both are checked before the file is read.

Licence: {record.license}.
"""
    return str(ModelCard(text))


def _leaves(measured: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What was measured and how: every value that is no mapping, with the keys that lead to it."""
    for key, value in measured.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", value


def _figures(measured: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The measured figures alone, for the metadata of the card."""
    return [(key, value) for key, value in _leaves(measured) if isinstance(value, float)]


def _certificate(certificate: Mapping[str, Any]) -> Iterator[str]:
    """What was proven: a list of rows as a table, anything else as a line."""
    for key, value in certificate.items():
        if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            rows = [[_text(row.get(column, "")) for column in value[0]] for row in value]
            yield _table([f"certified {key}: {next(iter(value[0]))}", *list(value[0])[1:]], rows)
        else:
            yield f"Certified {key}: {_text(value)}.\n"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value).replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
