"""Encodings: how a matrix becomes tokens for a transformer, and how decoded tokens become a matrix.

Every encoding has the same face, so that the transformer does not know which one it runs:

- ``encode(channels, cues)``: (B, c, n, n) matrices and (B, k) scalars → (B, T, d) tokens;
- ``queries(n)``: (Q, d), what the decoder is asked: one query an output position;
- ``decode(tokens)``: (B, Q, d) → (B, n, n).

Positions are two-dimensional sinusoids (row in one half of the features, column in the other), after Vaswani
et al. 2017, section 3.5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: Wavelengths of the sinusoids run from 2π to 2π·LONGEST; n ≤ 8 needs nothing longer.
LONGEST = 50.0
#: Standard deviation of the first embedding: with torch's default the positions drown the entries, and
#: training stays on the baseline for thousands of steps.
EMBED = 1.0
#: Spectral cues: traces of this many powers, plus the Frobenius, one- and infinity-norms.
TRACES = 4


def sinusoid(index: Tensor, features: int) -> Tensor:
    """Return (len(index), features) sines and cosines of ``index``; ``features`` must be even."""
    frequencies = torch.exp(torch.arange(0, features, 2) * (-math.log(LONGEST) / features))
    angles = index.to(frequencies.dtype)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def grid_positions(rows: Tensor, columns: Tensor, features: int) -> Tensor:
    """Return the (T, features) two-dimensional sinusoidal positions of entries (rows, columns)."""
    return torch.cat([sinusoid(rows, features // 2), sinusoid(columns, features // 2)], dim=-1)


def spectral_cues(matrices: Tensor) -> Tensor:
    """Return (B, TRACES + 3) similarity invariants and norms of (B, n, n) matrices, each scaled by n.

    tr(Aᵏ)/n for k = 1 … TRACES determine the spectrum for n ≤ TRACES (Newton's identities).
    """
    n = matrices.shape[-1]
    power, cues = matrices, []
    for k in range(TRACES):
        cues.append(power.diagonal(dim1=-2, dim2=-1).sum(-1) / n)
        if k + 1 < TRACES:
            power = power @ matrices
    cues.append(matrices.square().sum((-2, -1)).sqrt() / math.sqrt(n))
    cues.append(matrices.abs().sum(-2).amax(-1) / n)
    cues.append(matrices.abs().sum(-1).amax(-1) / n)
    return torch.stack(cues, dim=-1)


class Encoding(nn.Module):
    """What all encodings share: the size n and the scalar cues are added to every token."""

    def __init__(self, width: int, channels: int, cues: int, n_max: int):
        super().__init__()
        self.width, self.channels, self.cues, self.n_max = width, channels, cues, n_max
        self.size = nn.Embedding(n_max + 1, width)
        nn.init.normal_(self.size.weight, std=0.02)
        self.cue = nn.Linear(cues, width) if cues else None
        index = torch.arange(n_max)
        rows, columns = index.repeat_interleave(n_max), index.repeat(n_max)
        table = grid_positions(rows, columns, width).view(n_max, n_max, width)
        self.register_buffer("positions", table, persistent=False)

    positions: Tensor  # (n_max, n_max, width)

    def shared(self, tokens: Tensor, n: int, cues: Tensor | None) -> Tensor:
        """Add to every token what it must know about the whole matrix."""
        tokens = tokens + self.size.weight[n]
        return tokens if self.cue is None else tokens + self.cue(cues).unsqueeze(-2)


class Flatten(Encoding):
    """One token an entry: n² tokens, a linear embedding of the entry in every channel."""

    def __init__(self, width: int, channels: int, cues: int, n_max: int):
        super().__init__(width, channels, cues, n_max)
        self.embed = nn.Linear(channels, width)
        nn.init.normal_(self.embed.weight, std=EMBED)
        self.ask = nn.Linear(width, width)
        self.read = nn.Linear(width, 1)

    def encode(self, channels: Tensor, cues: Tensor | None) -> Tensor:
        n = channels.shape[-1]
        entries = channels.flatten(-2).mT
        tokens = self.embed(entries) + self.positions[:n, :n].reshape(n * n, -1)
        return self.shared(tokens, n, cues)

    def queries(self, n: int) -> Tensor:
        return self.ask(self.positions[:n, :n].reshape(n * n, -1)) + self.size.weight[n]

    def decode(self, tokens: Tensor) -> Tensor:
        n = math.isqrt(tokens.shape[-2])
        return self.read(tokens).unflatten(-2, (n, n)).squeeze(-1)


class Block(Encoding):
    """One token an index: row i and column i together, n tokens. Output i reads row i and column i too.

    An attention head whose query holds row i and whose keys hold positions has scores a_ik: it mixes the
    tokens as a matrix product does, which is why so few tokens suffice.
    """

    def __init__(self, width: int, channels: int, cues: int, n_max: int):
        super().__init__(width, channels, cues, n_max)
        self.embed = nn.Linear(2 * channels * n_max, width)
        nn.init.normal_(self.embed.weight, std=EMBED)
        self.ask = nn.Linear(width, width)
        self.read = nn.Linear(width, 2 * n_max)

    def encode(self, channels: Tensor, cues: Tensor | None) -> Tensor:
        n = channels.shape[-1]
        rows, columns = channels.transpose(-3, -2), channels.permute(0, 3, 1, 2)
        both = nn.functional.pad(torch.cat([rows, columns], dim=-2), (0, self.n_max - n))
        tokens = self.embed(both.flatten(-2)) + self.positions.diagonal().mT[:n]
        return self.shared(tokens, n, cues)

    def queries(self, n: int) -> Tensor:
        return self.ask(self.positions.diagonal().mT[:n]) + self.size.weight[n]

    def decode(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[-2]
        rows, columns = self.read(tokens).split(self.n_max, dim=-1)
        return 0.5 * (rows[..., :n] + columns[..., :n].mT)


class Spectral(Flatten):
    """``flatten`` plus one token for each spectral cue of the first channel."""

    def __init__(self, width: int, channels: int, cues: int, n_max: int):
        super().__init__(width, channels, cues, n_max)
        self.cue_names = nn.Parameter(torch.randn(TRACES + 3, width) * 0.02)
        self.cue_scale = nn.Parameter(torch.randn(TRACES + 3, width) / math.sqrt(width))

    def encode(self, channels: Tensor, cues: Tensor | None) -> Tensor:
        tokens = super().encode(channels, cues)
        spectral = spectral_cues(channels[:, 0]).unsqueeze(-1) * self.cue_scale + self.cue_names
        return torch.cat([tokens, spectral], dim=-2)


#: name → class; ``auto`` is not here: training resolves it to one of these (see training/study.py).
ENCODINGS: dict[str, type[Flatten] | type[Block]] = {"flatten": Flatten, "block": Block, "spectral": Spectral}
