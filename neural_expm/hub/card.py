"""The model card of a checkpoint: everything in it comes from the record, nothing is typed by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    rows = "\n".join(f"| {key} | {value:.3g} |" for key, value in _figures(record.measured))
    measured = f"\n| measured | relative error |\n|---|---|\n{rows}\n" if rows else ""
    conditions = ", ".join(f"{key}: {value}" for key, value in _conditions(record.measured))
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
{measured}
{f"Conditions: {conditions}." if conditions else ""}

## Training

{f"`{record.trained_by}`" if record.trained_by else "The command was not recorded."}

## Files

`model.safetensors`: {record.size} bytes, sha256 `{record.sha256}`;
both are checked before the file is read.

Licence: {record.license}.
"""
    return str(ModelCard(text))


def _figures(measured: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The measured errors: every float, with the keys that lead to it."""
    for key, value in measured.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{key} ")
        elif isinstance(value, float):
            yield f"{prefix}{key}", value


def _conditions(measured: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """How it was measured: what is no error, such as the distribution, the sample size and the seed."""
    for key, value in measured.items():
        if not isinstance(value, Mapping | float | list):
            yield key, value
