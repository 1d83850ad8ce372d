"""The baseline that attention is compared with: a plain fully connected ReLU network on the same data."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from neural_expm.networks.pretrained import Pretrained
from neural_expm.networks.transformer import apply_framed, build, build_frame


class MLPNet(Pretrained, nn.Module):
    """ReLU multilayer perceptron from (*, n, n) to (*, n, n), 1 ≤ n ≤ ``n_max``; entries padded to n_max².

    ``frame`` is as for :class:`TransformerNet`, so that the comparison is of the learned parts alone.
    ``hidden`` is the width and ``layers`` the number of hidden layers. Raises as :class:`TransformerNet`.
    """

    family = "mlp"

    def __init__(self, frame: dict[str, Any], n_max: int = 8, hidden: int = 512, layers: int = 4):
        super().__init__()
        self.config: dict[str, Any] = {
            "frame": copy.deepcopy(frame),
            "n_max": n_max,
            "hidden": hidden,
            "layers": layers,
        }
        self.frame = build_frame(frame)
        inputs = self.frame.channels * n_max**2 + self.frame.cues
        sizes = [inputs, *[hidden] * layers]
        self.body = nn.Sequential(
            *(m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU()))
        )
        self.read = nn.Linear(hidden, n_max**2)
        self.read.weight.data.mul_(0.1)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MLPNet:
        return build(cls, config)

    def residual(self, channels: Tensor, cues: Tensor | None) -> Tensor:
        """Run the learned part alone: (B, c, n, n) → (B, n, n)."""
        n, n_max = channels.shape[-1], self.config["n_max"]
        padded = nn.functional.pad(channels, (0, n_max - n, 0, n_max - n)).flatten(1)
        features = padded if cues is None else torch.cat([padded, cues], dim=-1)
        return self.read(self.body(features)).unflatten(-1, (n_max, n_max))[..., :n, :n]

    def forward(self, A: Tensor) -> Tensor:
        return apply_framed(self, A)
