"""The encoder–decoder transformer (Vaswani et al. 2017) that learns a matrix function for every n ≤ n_max.

Softmax attention; the encoder runs over the tokens of the input matrix, the decoder over one query an output
position, all positions at once. Layers are pre-norm (Xiong et al. 2020). What is known about the function
sits in the frame (``frames.py``), how a matrix becomes tokens in the encoding (``encodings.py``).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from neural_expm.errors import CheckpointError, InputError
from neural_expm.networks.encodings import ENCODINGS
from neural_expm.networks.frames import FRAMES
from neural_expm.networks.numerals import NUMERALS, numeral_encoding
from neural_expm.networks.pretrained import Pretrained


class Attention(nn.Module):
    """Multi-head softmax attention of (B, Q, d) queries to a (B, T, d) source."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        both = self.key_value(source).unflatten(-1, (2, self.heads, -1))
        key, value = both.select(-3, 0).transpose(-3, -2), both.select(-3, 1).transpose(-3, -2)
        mixed = scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(-3, -2).flatten(-2))


class Layer(nn.Module):
    """Self-attention, cross-attention if ``cross``, feed-forward; each with a norm before and a residual."""

    def __init__(self, width: int, heads: int, hidden: int, cross: bool):
        super().__init__()
        self.norm_self, self.attend_self = nn.LayerNorm(width), Attention(width, heads)
        self.norm_cross = nn.LayerNorm(width) if cross else None
        self.attend_cross = Attention(width, heads) if cross else None
        self.norm_feed = nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        y = self.norm_self(x)
        x = x + self.attend_self(y, y)
        if self.norm_cross is not None and self.attend_cross is not None and source is not None:
            x = x + self.attend_cross(self.norm_cross(x), source)
        return x + self.contract(gelu(self.expand(self.norm_feed(x)), approximate="tanh"))


class TransformerNet(Pretrained, nn.Module):
    """Encoder–decoder transformer from (*, n, n) to (*, n, n), for 1 ≤ n ≤ ``n_max``.

    Parameters (all of them in ``config``)
    --------------------------------------
    encoding: "flatten", "block", "spectral", or a numeral encoding "p10", "p1000", "b1999", "fp15";
    frame: {"kind": …, parameters of that frame}; width: features of a token; heads; encoder_layers;
    decoder_layers; hidden: width of the feed-forward part.

    Raises :class:`CheckpointError` for a configuration that cannot be built and :class:`InputError` for a
    matrix that is not square or is larger than ``n_max``.
    """

    family = "transformer"

    def __init__(
        self,
        encoding: str,
        frame: dict[str, Any],
        n_max: int = 8,
        width: int = 128,
        heads: int = 8,
        encoder_layers: int = 3,
        decoder_layers: int = 2,
        hidden: int = 384,
    ):
        super().__init__()
        if width % heads or width % 4:
            raise ValueError(f"width {width} must be a multiple of heads ({heads}) and of 4")
        self.config: dict[str, Any] = {
            "encoding": encoding,
            "frame": copy.deepcopy(frame),
            "n_max": n_max,
            "width": width,
            "heads": heads,
            "encoder_layers": encoder_layers,
            "decoder_layers": decoder_layers,
            "hidden": hidden,
        }
        self.frame = build_frame(frame)
        chosen = numeral_encoding(encoding) if encoding in NUMERALS else ENCODINGS[encoding]
        self.encoding = chosen(width, self.frame.channels, self.frame.cues, n_max)
        self.encoder = nn.ModuleList(Layer(width, heads, hidden, False) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(Layer(width, heads, hidden, True) for _ in range(decoder_layers))
        self.norm_source, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self._start(encoder_layers + decoder_layers)

    def _start(self, layers: int) -> None:
        """Shrink what each layer adds by 1/√(2·layers), and the read-out: training starts near zero."""
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "contract.weight")):
                parameter.data.div_(math.sqrt(2 * layers))
        self.encoding.read.weight.data.mul_(0.1)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TransformerNet:
        return build(cls, config)

    def residual(self, channels: Tensor, cues: Tensor | None) -> Tensor:
        """Run the learned part alone: (B, c, n, n) → (B, n, n)."""
        source = self.encoding.encode(channels, cues)
        for layer in self.encoder:
            source = layer(source)
        source = self.norm_source(source)
        x = self.encoding.queries(channels.shape[-1]).expand(source.shape[0], -1, -1)
        for layer in self.decoder:
            x = layer(x, source)
        return self.encoding.decode(self.norm_out(x))

    def forward(self, A: Tensor) -> Tensor:
        return apply_framed(self, A)


def build_frame(frame: dict[str, Any]) -> Any:
    """Build the frame that a configuration describes."""
    parameters = dict(frame)
    return FRAMES[parameters.pop("kind")](**parameters)


def build(cls: Any, config: dict[str, Any]) -> Any:
    """Build ``cls(**config)``; whatever is wrong with the configuration is a CheckpointError."""
    for key in ("width", "heads", "n_max", "hidden", "encoder_layers", "decoder_layers", "layers"):
        value = config.get(key, 1)
        if type(value) is not int or not 1 <= value <= 65536:
            raise CheckpointError(f"{key} = {value!r}: expected an integer from 1 to 65536")
    try:
        return cls(**config)
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{cls.__name__} cannot be built from {config}: {error!r}. The file belongs to another version "
            "of neural_expm, or was edited: fetch it again"
        ) from error


def apply_framed(net: Any, A: Tensor, network: bool = True, polish: bool = True) -> Tensor:
    """Run frame and network on (*, n, n); the switches leave out the network or the last products."""
    n = A.shape[-1] if A.dim() >= 2 else 0
    n_max = net.config["n_max"]
    if not 1 <= n <= n_max or A.shape[-2] != n:
        raise InputError(f"shape {tuple(A.shape)}: this network takes (*, n, n) with 1 ≤ n ≤ {n_max}")
    batch = A.reshape(-1, n, n)
    prepared = net.frame.prepare(batch)
    residual = net.residual(prepared.channels, prepared.cues) if network else None
    return torch.reshape(net.frame.finish(prepared, residual, polish), A.shape)
