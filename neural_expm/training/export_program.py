"""What the exporters write down: a ReLU network and its classical frame as plain numpy arrays.

A `Program` is one straight line: vectorise, frame in, affine, ReLU, …, affine, frame out. The frames are
those of `TrainedReLUNet`; a constructed network has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from torch import nn

from ..domain import Domain
from ..errors import InputError
from ..networks.relu import Int8Linear, TrainedReLUNet
from ..networks.relu_executor import ConstructedReLUNet

# A C file of more weights than this takes compilers minutes and boards megabytes; sparse networks count
# nonzeros.
MAX_EXPORTED = 4_000_000


@dataclass(frozen=True)
class Layer:
    """One affine map. `weights`: dense (outputs × inputs), int8 codes with a `scale` a row, or sparse CSR."""

    weights: np.ndarray | sparse.csr_array
    bias: np.ndarray
    scale: np.ndarray | None = None

    @property
    def outputs(self) -> int:
        """Neurons."""
        return len(self.bias)

    @property
    def dense(self) -> np.ndarray:
        """The weights as floating-point numbers, outputs × inputs."""
        if isinstance(self.weights, sparse.csr_array):
            return self.weights.toarray()
        return self.weights if self.scale is None else self.weights * self.scale[:, None]

    @property
    def count(self) -> int:
        """Weights that are stored."""
        return self.weights.nnz if isinstance(self.weights, sparse.csr_array) else self.weights.size

    def nbytes(self, index_bytes: int) -> int:
        """Bytes of the constants in the C file, whose column indices take `index_bytes` each."""
        if isinstance(self.weights, sparse.csr_array):
            entry = self.bias.itemsize + index_bytes
            return self.weights.nnz * entry + (self.outputs + 1) * 4 + self.bias.nbytes
        return self.weights.nbytes + self.bias.nbytes + (0 if self.scale is None else self.scale.nbytes)


@dataclass(frozen=True)
class Program:
    """A network to export; `frame` is "none", "expm" or "sqrtm", the rest as in `TrainedReLUNet`.

    `domain`: what its promise speaks of; None for that of a weight file, which does not say.
    """

    name: str
    function: str
    n: int
    dtype: str  # of inputs, outputs and arithmetic
    layers: tuple[Layer, ...]
    frame: str
    squarings: int = 0
    baseline: int = 0
    domain: Domain | None = None

    @property
    def promise(self) -> str:
        """The domain in ASCII."""
        text = "unknown" if self.domain is None else str(self.domain)
        return text.replace("‖", "||").replace("≤", "<=").replace("≥", ">=")

    @property
    def width(self) -> int:
        """The longest vector between two affine maps."""
        return max(self.n * self.n, *(layer.outputs for layer in self.layers))


def program_of(network: nn.Module, name: str, domain: Domain | None = None) -> Program:
    """The program of a ReLU network.

    Raises:
        InputError: the network is of another family, or has too many weights to write out.
    """
    if isinstance(network, ConstructedReLUNet):
        dtype = str(network.get_buffer("bias0").dtype).removeprefix("torch.")
        layers = tuple(
            Layer(sparse.csr_array(weights, dtype=dtype), bias.astype(dtype))
            for weights, bias in network.layers()
        )
        program = Program(name, network.recipe.function, network.n, dtype, layers, "none", domain=domain)
    elif isinstance(network, TrainedReLUNet):
        layers = tuple(_trained_layer(layer) for layer in network.linears)
        frame = network.function if network.baseline >= 0 else "none"
        dtype = str(network.eye.dtype).removeprefix("torch.")
        program = Program(
            name,
            network.function,
            network.n,
            dtype,
            layers,
            frame,
            network.squarings,
            network.baseline,
            domain,
        )
    else:
        raise InputError(
            f"{name!r} is a {type(network).__name__}: only the relu family and the equivariant one are exported; "
            "use torch.export on the loaded network for the others"
        )
    weights = sum(layer.count for layer in program.layers)
    if weights > MAX_EXPORTED:
        raise InputError(
            f"{name!r} has {weights:,} weights, more than the {MAX_EXPORTED:,} an export may have; "
            "construct one for a smaller n, a smaller radius or a larger epsilon"
        )
    return program


def _trained_layer(layer: Any) -> Layer:
    bias = layer.bias.detach().cpu().numpy()
    if isinstance(layer, Int8Linear):
        return Layer(layer.codes.cpu().numpy(), bias, layer.scale.cpu().numpy())
    return Layer(layer.weight.detach().cpu().numpy(), bias)
