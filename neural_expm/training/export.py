"""Write a ReLU checkpoint for other runtimes: C99, ONNX, or numpy.

``python -m neural_expm.training export NAME --format onnx|c|numpy``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from .. import checkpoints, manifest
from ..errors import InputError
from ..networks.relu import TrainedReLUNet
from .export_c import constant_bytes, scratch_bytes, write_c
from .export_numpy import write_numpy
from .export_onnx import write_onnx
from .export_program import program_of

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


def export(name: str, kind: str, folder: Path, weights: str = "float32") -> list[Path]:
    """Write checkpoint `name` as `kind` ("onnx", "c", "numpy") into `folder`; returns the files.

    Args:
        name: a shipped checkpoint of the relu family, or the path of a ``.safetensors`` file.
        kind: the format.
        folder: made if missing.
        weights: "float32" as stored, or "int8" with one scale a row (trained networks).

    Raises:
        InputError: another family, int8 for a constructed network, too large, or onnx is not installed.
    """
    network, label = find_network(name)
    if weights == "int8":
        if not isinstance(network, TrainedReLUNet):
            raise InputError(f"{name!r} with int8 weights would lose its proof: leave out --weights int8")
        if network.config["weights"] != "int8":
            network, label = network.quantized(), f"{label}-int8"
    program = program_of(network, label)
    folder.mkdir(parents=True, exist_ok=True)
    files = WRITERS[kind](program, folder)
    print(f"{label}: {constant_bytes(program)} bytes of constants, {scratch_bytes(program)} bytes of scratch")
    return files


def main(argv: list[str]) -> int:
    """The command line; `argv` without the program's name."""
    parser = argparse.ArgumentParser(prog="python -m neural_expm.training export", description=__doc__)
    parser.add_argument("name", help="a checkpoint of the relu family, or the path of a .safetensors file")
    parser.add_argument("--format", choices=sorted(WRITERS), required=True)
    parser.add_argument("--out", type=Path, default=Path(), help="folder to write into (default: here)")
    parser.add_argument("--weights", choices=["float32", "int8"], default="float32")
    options = parser.parse_args(argv)
    for path in export(options.name, options.format, options.out, options.weights):
        print(path)
    return 0
