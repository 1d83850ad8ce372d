"""Write a checkpoint for other runtimes: a ReLU network as C99, ONNX or numpy, an equivariant network as ONNX.

``python -m neural_expm.training export NAME --format onnx|c|numpy``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from .. import checkpoints, manifest
from ..errors import InputError
from ..networks.protocols import Traceable
from ..networks.relu import TrainedReLUNet
from .export_c import constant_bytes, scratch_bytes, write_c
from .export_numpy import write_numpy
from .export_onnx import write_onnx
from .export_program import program_of
from .export_traced import write_traced_onnx

WRITERS = {"onnx": write_onnx, "c": write_c, "numpy": write_numpy}


def find_network(name: str) -> tuple[nn.Module, str]:
    """The network of a shipped name, or of a weight file, and the name for the files.

    Raises:
        UnknownModelError: no such checkpoint.
        CheckpointError: the weight file is missing or damaged.
    """
    if name.endswith(".safetensors"):
        path = Path(name)
        config, tensors = checkpoints.parse(checkpoints.read_verified(path, name=name), name)
        return checkpoints.build(config, tensors, name), config["name"]
    return checkpoints.load_record(manifest.find(name)), name


def export(
    name: str,
    kind: str,
    folder: Path,
    weights: str = "float32",
    *,
    dtype: str | None = None,
    n: int | None = None,
    radius: float | None = None,
) -> list[Path]:
    """Write checkpoint `name` as `kind` ("onnx", "c", "numpy") into `folder`; returns the files.

    Args:
        name: a shipped checkpoint of the relu or equivariant family, or the path of a ``.safetensors`` file.
        kind: the format.
        folder: made if missing.
        weights: "float32" as stored, or "int8" with one scale a row (trained ReLU networks).
        dtype: equivariant: "float32" or "float64"; None for float64 where that is the checkpoint's, else float32.
        n: equivariant: fix the size; None for any n ≥ 2.
        radius: equivariant expm: the largest ‖A‖₂ to serve; None for all that the network does.

    Raises:
        InputError: another family, an option that does not apply, too large, or onnx is not installed.
    """
    network, label = find_network(name)
    record: checkpoints.Checkpoint | None = getattr(network, "checkpoint", None)
    if isinstance(network, Traceable):
        if kind != "onnx" or weights != "float32":
            raise InputError(
                f"{name!r} is an equivariant network, which is exported as ONNX with its own weights only: "
                "use --format onnx and leave out --weights"
            )
        double = dtype == "float64" or (dtype is None and record is not None and record.dtype == "float64")
        folder.mkdir(parents=True, exist_ok=True)
        real = torch.float64 if double else torch.float32
        return write_traced_onnx(network, f"{label}{_chosen(dtype, n, radius)}", folder, real, n, radius)
    if (dtype, n, radius) != (None, None, None):
        raise InputError(
            f"{name!r} is no equivariant network: its dtype and n are its own; leave out --dtype, --n and --radius"
        )
    if weights == "int8":
        if not isinstance(network, TrainedReLUNet):
            raise InputError(f"{name!r} with int8 weights would lose its proof: leave out --weights int8")
        if network.config["weights"] != "int8":
            network, label = network.quantized(), f"{label}-int8"
    program = program_of(network, label, None if record is None else record.domain)
    folder.mkdir(parents=True, exist_ok=True)
    files = WRITERS[kind](program, folder)
    print(f"{label}: {constant_bytes(program)} bytes of constants, {scratch_bytes(program)} bytes of scratch")
    return files


def _chosen(dtype: str | None, n: int | None, radius: float | None) -> str:
    """What a file name has to say, lest one model take the place of another."""
    parts = (dtype, n and f"n{n}", radius and f"radius{radius:g}")
    return "".join(f"-{part}" for part in parts if part)


def main(argv: list[str]) -> int:
    """The command line; `argv` without the program's name."""
    parser = argparse.ArgumentParser(prog="python -m neural_expm.training export", description=__doc__)
    parser.add_argument(
        "name", help="a checkpoint of the relu or equivariant family, or the path of a .safetensors file"
    )
    parser.add_argument("--format", choices=sorted(WRITERS), required=True)
    parser.add_argument("--out", type=Path, default=Path(), help="folder to write into (default: here)")
    parser.add_argument("--weights", choices=["float32", "int8"], default="float32")
    equivariant = parser.add_argument_group("equivariant networks")
    equivariant.add_argument("--dtype", choices=["float32", "float64"], help="default: the checkpoint's")
    equivariant.add_argument("--n", type=int, help="fix the size (default: any n from 2)")
    equivariant.add_argument("--radius", type=float, help="expm: largest ‖A‖₂ to serve, in fewer products")
    options = parser.parse_args(argv)
    files = export(
        options.name,
        options.format,
        options.out,
        options.weights,
        dtype=options.dtype,
        n=options.n,
        radius=options.radius,
    )
    for path in files:
        print(path)
    return 0
