"""A ReLU network as ONNX (opset 17): Gemm, Relu and the few operators of its frame; any batch size."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .export_program import Layer, Program

MAX_DENSE = 20_000_000  # ONNX has no sparse Gemm: constructed networks are written dense


class _Graph:
    """Nodes and constants, each with a fresh name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: Any = None) -> str:
        from onnx import numpy_helper

        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=dtype), name))
        return name

    def node(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        name = output or f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name


def write_onnx(program: Program, folder: Path) -> list[Path]:
    """Write ``NAME.onnx`` (input ``A``, output ``F``, both (batch, n, n)); returns its path.

    Raises:
        InputError: onnx is not installed, or the dense weights would be too many.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as error:
        raise InputError("ONNX export needs the package onnx: pip install 'neural-expm[onnx]'") from error
    sizes = [program.n**2, *(layer.outputs for layer in program.layers)]
    dense = sum(a * b for a, b in pairwise(sizes))
    if dense > MAX_DENSE:
        raise InputError(
            f"{program.name!r} has {dense:,} weights when dense, more than the {MAX_DENSE:,} allowed; "
            "use --format c or numpy, which keep it sparse"
        )
    graph = _Graph()
    {"none": _no_frame, "expm": _exponential, "sqrtm": _square_root}[program.frame](graph, program)
    kind = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}[program.dtype]
    shape: list[str | int | None] = ["batch", program.n, program.n]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            program.name,
            [helper.make_tensor_value_info("A", kind, shape)],
            [helper.make_tensor_value_info("F", kind, shape)],
            graph.constants,
            doc_string=f"Made for: {program.promise}. Of other matrices it promises nothing, and does not notice them.",
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="neural_expm",
    )
    onnx.checker.check_model(model, full_check=True)
    path = folder / f"{program.name.replace('-', '_')}.onnx"
    onnx.save(model, path)
    return [path]


def _perceptron(graph: _Graph, program: Program, x: str) -> str:
    for index, layer in enumerate(program.layers):
        x = graph.node("Gemm", x, _weights(graph, layer), graph.constant(layer.bias), transB=1)
        if index < len(program.layers) - 1:
            x = graph.node("Relu", x)
    return x


def _weights(graph: _Graph, layer: Layer) -> str:
    if layer.scale is None:
        return graph.constant(layer.dense)
    zero = graph.constant(np.zeros(layer.outputs), np.int8)
    return graph.node(
        "DequantizeLinear", graph.constant(layer.weights), graph.constant(layer.scale), zero, axis=0
    )


def _flatten(graph: _Graph, x: str, entries: int) -> str:
    return graph.node("Reshape", x, graph.constant([-1, entries], np.int64))


def _no_frame(graph: _Graph, program: Program) -> None:
    n = program.n
    value = _perceptron(graph, program, _flatten(graph, "A", n * n))
    graph.node("Reshape", value, graph.constant([-1, n, n], np.int64), output="F")


def _exponential(graph: _Graph, program: Program) -> None:
    n, dtype = program.n, program.dtype
    matrices = graph.constant([-1, n, n], np.int64)
    eye = graph.constant(np.eye(n).reshape(1, -1), dtype)
    a = _flatten(graph, "A", n * n)
    mean = graph.node("MatMul", a, graph.constant(np.eye(n).reshape(-1, 1) / n, dtype))
    b = graph.node("Sub", a, graph.node("Mul", mean, eye))
    b = graph.node("Mul", b, graph.constant(0.5**program.squarings, dtype))
    value = graph.node("Add", _perceptron(graph, program, b), eye)
    if program.baseline >= 1:
        value = graph.node("Add", value, b)
    value = graph.node("Reshape", value, matrices)
    if program.baseline >= 2:
        square = graph.node("Reshape", b, matrices)
        square = graph.node("MatMul", square, square)
        value = graph.node("Add", value, graph.node("Mul", square, graph.constant(0.5, dtype)))
    for _ in range(program.squarings):
        value = graph.node("MatMul", value, value)
    factor = graph.node("Reshape", graph.node("Exp", mean), graph.constant([-1, 1, 1], np.int64))
    graph.node("Mul", factor, value, output="F")


def _square_root(graph: _Graph, program: Program) -> None:
    n, dtype = program.n, program.dtype
    row, column = np.triu_indices(n)
    place = np.zeros((n, n), dtype=np.int64)
    place[row, column] = place[column, row] = np.arange(len(row))
    a = _flatten(graph, "A", n * n)
    mean = graph.node("MatMul", a, graph.constant(np.eye(n).reshape(-1, 1) / n, dtype))
    b = graph.node("Div", graph.node("Gather", a, graph.constant(row * n + column, np.int64), axis=1), mean)
    half = graph.node("Add", b, graph.constant(np.eye(n)[row, column][None], dtype))
    half = graph.node("Mul", half, graph.constant(0.5, dtype))
    value = graph.node("Add", half, _perceptron(graph, program, b))
    value = graph.node("Mul", graph.node("Sqrt", mean), value)
    value = graph.node("Gather", value, graph.constant(place.ravel(), np.int64), axis=1)
    graph.node("Reshape", value, graph.constant([-1, n, n], np.int64), output="F")
