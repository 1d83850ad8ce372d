"""Data sets on disk: ``python -m neural_expm.training data``.

A data set is one safetensors file (``A_n`` and ``F_n`` for each size n, float64) and a JSON manifest beside
it that says how every number was made, with the sha256 of the file. Nothing is parsed before that is checked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from neural_expm.errors import TrainingError
from neural_expm.training import data
from neural_expm.training.files import sha256_of, write_aside, write_json

FORMAT = 1
#: Matrices are drawn in chunks with a stream each, so that a longer data set begins with the shorter one.
CHUNK = 4096


def held_out(
    function: str, name: str, n: int, count: int, split: str = "test", seed: int = 0, **params: float
) -> tuple[Tensor, Tensor]:
    """Return the first ``count`` pairs (A, f(A)) of size n of a split, float64: the same on every call."""
    chunks = []
    for index in range((count + CHUNK - 1) // CHUNK):
        generator = data.split_generator(split, seed, n, index)
        chunks.append(data.sample_pairs(function, name, n, CHUNK, generator, **params))
    if not chunks:
        return data.sample_pairs(function, name, n, 0, data.split_generator(split, seed, n), **params)
    matrices, values = (torch.cat(parts)[:count] for parts in zip(*chunks, strict=True))
    return matrices, values


def write_dataset(
    folder: Path,
    function: str,
    name: str,
    sizes: list[int],
    count: int,
    split: str = "test",
    seed: int = 0,
    **params: float,
) -> Path:
    """Write ``count`` pairs of each size; returns the path of the manifest."""
    title = f"{function}-{name}-{split}-{seed}"
    path = folder / f"{title}.safetensors"
    tensors = {}
    for n in sizes:
        matrices, values = held_out(function, name, n, count, split, seed, **params)
        tensors[f"A_{n}"], tensors[f"F_{n}"] = matrices.contiguous(), values.contiguous()
    write_aside(path, lambda aside: save_file(tensors, aside))
    manifest = folder / f"{title}.json"
    write_json(
        manifest,
        {
            "format": FORMAT,
            "file": path.name,
            "sha256": sha256_of(path),
            "function": function,
            "distribution": name,
            "parameters": params,
            "reference": data.REFERENCES[function],
            "split": split,
            "seed": seed,
            "sizes": sizes,
            "count": count,
            "torch": str(torch.__version__),
        },
    )
    return manifest


def read_dataset(manifest: Path) -> tuple[dict[str, Any], dict[int, tuple[Tensor, Tensor]]]:
    """Return the manifest and {n: (A, f(A))}; TrainingError if the file is not the one that was written."""
    try:
        facts = json.loads(manifest.read_text())
        path, expected, sizes = manifest.parent / facts["file"], facts["sha256"], facts["sizes"]
        content = path.read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"cannot read the data set {manifest}: {error!r}; write it again") from error
    found = sha256_of(path)
    if found != expected:
        raise TrainingError(
            f"{path}: sha256 is {found}, the manifest says {expected}. The file was changed or cut short: "
            "write it again with `python -m neural_expm.training data write`"
        )
    tensors = load(content)
    return facts, {n: (tensors[f"A_{n}"], tensors[f"F_{n}"]) for n in sizes}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m neural_expm.training data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="draw a data set and its manifest")
    write.add_argument("--function", choices=sorted(data.REFERENCES), required=True)
    write.add_argument("--distribution", choices=sorted(data.DISTRIBUTIONS), required=True)
    write.add_argument("--sizes", type=int, nargs="+", default=list(range(2, 9)))
    write.add_argument("--count", type=int, default=1000, help="matrices of each size")
    write.add_argument("--split", choices=sorted(data.SPLITS), default="test")
    write.add_argument("--seed", type=int, default=0)
    write.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter")
    write.add_argument("--folder", type=Path, default=Path("runs/data"))
    verify = commands.add_parser("verify", help="check the sha256 of a data set")
    verify.add_argument("manifest", type=Path)
    options = parser.parse_args(argv)
    if options.command == "verify":
        facts, _ = read_dataset(options.manifest)
        print(f"{facts['file']}: sha256 {facts['sha256']} holds")
        return 0
    params = dict(_parameter(text) for text in options.set)
    print(
        write_dataset(
            options.folder,
            options.function,
            options.distribution,
            options.sizes,
            options.count,
            options.split,
            options.seed,
            **params,
        )
    )
    return 0


def _parameter(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise TrainingError(f"--set {text!r}: expected NAME=NUMBER, such as gap=0.2") from error
