"""An equivariant network as ONNX: the traced program, with matrix products and element-wise operations inside.

One file serves every batch and, unless n is fixed, every n ≥ 2; the depth and the largest radius are constants of the
file, the squarings are chosen for each matrix.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, NeuralExpmError
from ..networks.exponential import EquivariantExponential
from ..networks.protocols import Traceable

OPSET = 18  # the oldest that torch's exporter writes
# Relative difference between the file and the network that is taken for rounding.
CHECK = {torch.float32: 1e-4, torch.float64: 1e-12}
TRACED_N = 3  # of the example; nothing in the file remembers it where n is free


class _Traced(nn.Module):
    def __init__(self, program: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.program = program

    def forward(self, A: Tensor) -> Tensor:
        return self.program(A)


def write_traced_onnx(
    network: Traceable,
    name: str,
    folder: Path,
    dtype: torch.dtype,
    n: int | None = None,
    radius: float | None = None,
) -> list[Path]:
    """Write ``NAME.onnx`` (input ``A``, output ``F``, both (batch, n, n)); returns its path.

    Args:
        network: of the equivariant family.
        name: of the file, with underscores for what is not a letter or digit.
        folder: where it goes.
        dtype: of input, output and arithmetic, float32 or float64.
        n: fix the size; None for any n ≥ 2.
        radius: expm: serve ‖A‖₂ up to this, in as few products as that takes; None for all that the network serves.

    A matrix beyond the radius comes back NaN (expm), as does one whose residual is not small (sign, sqrtm).

    Raises:
        InputError: a radius that the network does not reach, or for a function that has none; or the packages onnx and
            onnxscript are not installed.
        NeuralExpmError: the file would not compute what the network does.
    """
    if n is not None and n < 2:
        raise InputError(f"export: n = {n}, expected a size of at least 2; leave out --n for any")
    if radius is not None and not 0 < radius < math.inf:
        raise InputError(
            f"export: radius = {radius:g}, expected a norm above 0; leave out --radius for all there is"
        )
    if radius is None:
        program = network.program()
    elif isinstance(network, EquivariantExponential):
        program = network.program_within(radius)
    else:
        raise InputError(f"{name!r} serves every norm: leave out --radius")
    free = torch.export.Dim.DYNAMIC
    shape = {0: free} if n else {0: free, 1: free, 2: free}
    size = n or TRACED_N
    example = torch.zeros(2, size, size, dtype=dtype)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torch reports its progress there
            onnx_program = torch.onnx.export(
                _Traced(program).eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=(shape,),
                input_names=["A"],
                output_names=["F"],
                opset_version=OPSET,
                verbose=False,
            )
    except ImportError as error:
        raise InputError(
            "ONNX export needs the packages onnx and onnxscript: pip install 'neural-expm[onnx]'"
        ) from error
    assert onnx_program is not None  # dynamo=True without a file
    difference = _discrepancy(onnx_program.model_proto, program, example, radius or 10.0)
    if not difference <= CHECK[dtype]:
        raise NeuralExpmError(
            f"{name}: the ONNX model differs from the network by {difference:.1e}, so nothing was written; "
            "try other versions of torch and onnxscript, and report this"
        )
    path = folder / f"{''.join(c if c.isalnum() else '_' for c in name)}.onnx"
    onnx_program.save(path)
    return [path]


def _discrepancy(model: Any, program: Callable[[Tensor], Tensor], example: Tensor, radius: float) -> float:
    """Largest relative difference on a few matrices: exporters have rounded constants, and left some out."""
    from onnx.reference import ReferenceEvaluator

    n = example.shape[-1]
    G = torch.randn(4, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    B = G @ G.mT + torch.eye(n)  # has an exponential, a sign and a root
    size = radius * torch.tensor([1e-3, 0.1, 0.5, 1.0], dtype=torch.float64)
    A = (B / torch.linalg.matrix_norm(B, keepdim=True) * size[:, None, None]).to(example.dtype)
    (result,) = ReferenceEvaluator(model).run(None, {"A": A.numpy()})
    expected = program(A)
    difference = (torch.from_numpy(result) - expected).abs().amax((-2, -1)) / expected.abs().amax((-2, -1))
    return float(difference.amax())
