"""Fully connected ReLU networks as PyTorch modules: trained ones here, constructed ones in `relu_executor`.

Both are family ``"relu"``; `ReLUNet.from_config` tells them apart by ``config["kind"]``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CheckpointError, InputError
from .pretrained import Pretrained

MAX_PARAMETERS = 20_000_000  # far above any compact network: a configuration beyond it is damaged


class ReLUNet(Pretrained, nn.Module):
    """Common face of the ReLU networks: matrices of one fixed size n in, matrices of the same size out."""

    family = "relu"
    config: dict[str, Any]
    n: int

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ReLUNet:
        """Build the network that `config` describes.

        Raises:
            CheckpointError: unknown kind, unknown or missing key, absurd value.
        """
        from .relu_executor import ConstructedReLUNet

        kinds: dict[Any, type[ReLUNet]] = {"constructed": ConstructedReLUNet, "trained": TrainedReLUNet}
        kind = config.get("kind")
        if kind not in kinds:
            raise CheckpointError(
                f"kind={kind!r} in the config of a ReLU network: expected one of {sorted(kinds)}"
            )
        return kinds[kind].from_config(config)

    def _received(self, A: Tensor, dtype: torch.dtype) -> Tensor:
        """A in the precision of the weights, its shape checked."""
        if A.shape[-2:] != (self.n, self.n):
            raise InputError(
                f"A has shape {tuple(A.shape)}: this ReLU network takes (*, {self.n}, {self.n}); "
                "load or construct one for the n at hand"
            )
        return A.to(dtype)


class Int8Linear(nn.Module):
    """``nn.Linear`` with int8 weights: W ≈ scale[row]·codes, |codes| ≤ 127, the bias in full precision."""

    codes: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros(outputs))
        self.register_buffer("bias", torch.zeros(outputs))

    @classmethod
    def quantize(cls, linear: Any) -> Int8Linear:
        """Round each row of the weights to a multiple of its largest entry over 127."""
        result = cls(linear.in_features, linear.out_features)
        weight = linear.weight.detach()
        result.scale = weight.abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny) / 127
        result.codes = torch.round(weight / result.scale[:, None]).to(torch.int8)
        result.bias = linear.bias.detach().clone()
        return result

    @property
    def weight(self) -> Tensor:
        """The weights that the codes stand for."""
        return self.codes.to(self.scale.dtype) * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """(*, inputs) → (*, outputs)."""
        return functional.linear(x, self.weight, self.bias)


class TrainedReLUNet(ReLUNet):
    """A small trained ReLU network inside a cheap classical frame.

    The frame uses what is known about f, at the price of a few n×n products, so that the network has less to
    learn:

    - ``"expm"``: e^A = e^t (e^B)^{2^s}, t = tr A/n, B = (A − tI)/2^s (trace shift, scaling and squaring);
      e^B ≈ baseline(B) + network(vec B), the baseline being I + B + … + B^d/d!, d = ``baseline``.
    - ``"sqrtm"``: A^{1/2} = √c B^{1/2}, c = tr A/n, B = A/c; B^{1/2} ≈ ½(I + B) + network(upper triangle
      of B), made symmetric, the baseline being one Newton step from I.

    Config: ``kind`` "trained", ``function``, ``n``, ``hidden`` (widths), ``squarings`` s (0 for the square
    root), ``baseline`` d (−1: no baseline and no trace shift, the network alone; 1 for the square root),
    ``weights`` "float32" or "int8".

    Shape: (*, n, n) → (*, n, n). Classical equivalents: `torch.linalg.matrix_exp`, the principal square root.
    Sources: Higham, Functions of Matrices (2008), ch. 10 (shift, scaling and squaring) and (6.26) (Newton).
    """

    eye: Tensor
    upper: Tensor
    place: Tensor

    def __init__(
        self,
        function: str,
        n: int,
        hidden: list[int],
        squarings: int = 0,
        baseline: int = 1,
        weights: str = "float32",
    ) -> None:
        super().__init__()
        self.function, self.n, self.squarings, self.baseline = function, n, squarings, baseline
        self.config = {
            "kind": "trained",
            "function": function,
            "n": n,
            "hidden": list(hidden),
            "squarings": squarings,
            "baseline": baseline,
            "weights": weights,
        }
        entries = n * n if function == "expm" else n * (n + 1) // 2
        widths = [entries, *hidden, entries]
        self.widths = tuple(widths)
        make: Any = Int8Linear if weights == "int8" else nn.Linear
        self.linears = nn.ModuleList([make(a, b) for a, b in pairwise(widths)])
        rows, columns = torch.triu_indices(n, n)
        self.register_buffer("upper", rows * n + columns, persistent=False)
        place = torch.zeros(n, n, dtype=torch.long)
        place[rows, columns] = place[columns, rows] = torch.arange(len(rows))
        self.register_buffer("place", place.flatten(), persistent=False)
        self.register_buffer("eye", torch.eye(n), persistent=False)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TrainedReLUNet:
        """Build from a config as `config` gives it.

        Raises:
            CheckpointError: unknown or missing key, absurd value.
        """
        known = {"kind", "function", "n", "hidden", "squarings", "baseline", "weights"}
        if set(config) != known:
            raise CheckpointError(
                f"trained ReLU network: config keys {sorted(config)}, expected {sorted(known)}"
            )
        hidden = config["hidden"]
        sane = (
            config["function"] in ("expm", "sqrtm")
            and config["weights"] in ("float32", "int8")
            and _whole(config["n"], 1, 64)
            and _whole(config["squarings"], 0, 30)
            and _whole(config["baseline"], -1, 2)
            and isinstance(hidden, list)
            and 1 <= len(hidden) <= 64
            and all(_whole(width, 1, 65536) for width in hidden)
            and (config["function"] == "expm" or (config["squarings"], config["baseline"]) == (0, 1))
        )
        if not sane or sum(a * b for a, b in pairwise([64, *hidden, 64])) > MAX_PARAMETERS:
            raise CheckpointError(
                f"trained ReLU network: a value of {config} is out of range; take an intact file"
            )
        return cls(**{key: value for key, value in config.items() if key != "kind"})

    @property
    def parameter_count(self) -> int:
        """Weights and biases of the ReLU network proper."""
        return sum(outputs * (inputs + 1) for inputs, outputs in pairwise(self.widths))

    def quantized(self) -> TrainedReLUNet:
        """The same network with int8 weights (one scale a row)."""
        result = TrainedReLUNet.from_config({**self.config, "weights": "int8"})
        result.linears = nn.ModuleList([Int8Linear.quantize(layer) for layer in self.linears])
        return result.eval()

    def perceptron(self, x: Tensor) -> Tensor:
        """The ReLU network proper, (*, entries) → (*, entries)."""
        for layer in self.linears[:-1]:
            x = functional.relu(layer(x))
        return self.linears[-1](x)

    def forward(self, A: Tensor) -> Tensor:
        """The function of each matrix of A, shape (*, n, n)."""
        A = self._received(A, self.eye.dtype)
        return self._exponential(A) if self.function == "expm" else self._square_root(A)

    def _exponential(self, A: Tensor) -> Tensor:
        if self.baseline < 0:
            return self.perceptron(A.flatten(-2)).reshape(A.shape)
        shift = A.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        B = (A - shift * self.eye) * 0.5**self.squarings
        value = self.eye + self.perceptron(B.flatten(-2)).reshape(A.shape)
        if self.baseline >= 1:
            value = value + B
        if self.baseline >= 2:
            value = value + 0.5 * (B @ B)
        for _ in range(self.squarings):
            value = value @ value
        return shift.exp() * value

    def _square_root(self, A: Tensor) -> Tensor:
        scale = A.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None]
        entries = A.flatten(-2)[..., self.upper] / scale
        value = 0.5 * (entries + self.eye.flatten()[self.upper]) + self.perceptron(entries)
        return (scale.sqrt() * value)[..., self.place].reshape(A.shape)


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
