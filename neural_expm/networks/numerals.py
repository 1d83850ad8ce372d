"""Numbers as tokens: the encodings P10, P1000, B1999 and FP15 of Charton 2022 (arXiv 2112.01898, section 3).

A real number is rounded to three significant digits, x = ±m·10ᵉ with m = 0 or 100 ≤ m ≤ 999, and written as

- P10: sign, three digits, exponent (five tokens);
- P1000: sign, mantissa, exponent (three tokens);
- B1999: signed mantissa, exponent (two tokens);
- FP15: sign, mantissa and exponent in one token.

``decode(encode(x))`` is x rounded to three digits, and ``encode(decode(t))`` is t. Rounding has no
derivative: a network that reads these tokens passes no gradient to A.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neural_expm.errors import InputError
from neural_expm.networks.encodings import Flatten

#: Exponents e of ±m·10ᵉ that P10, P1000 and B1999 write; FP15 has the sixteen from FP15_FIRST on.
EXPONENT = 100
FP15_FIRST, FP15_COUNT = -10, 16
#: Signed mantissas of FP15: −999 … −100, 0, 100 … 999.
FP15_MANTISSAS = 1801


def split(numbers: Tensor, low: int = -EXPONENT, high: int = EXPONENT) -> tuple[Tensor, Tensor, Tensor]:
    """Return (negative, mantissa, exponent) of real numbers rounded to three significant digits.

    Too small for the exponents becomes zero; :class:`InputError` for what is too large or not finite.
    """
    x = numbers.to(torch.float64)
    if not bool(torch.isfinite(x).all()):
        raise InputError("a matrix with NaN or infinite entries has no token encoding; remove it first")
    size = x.abs()
    # Python writes the digits of a float64 correctly rounded; log10 alone is off by one near powers of ten.
    texts = [f"{value:.2e}" for value in size.flatten().tolist()]
    digits = torch.tensor([int(t[0] + t[2:4]) for t in texts], device=x.device).reshape(x.shape)
    exponents = torch.tensor([int(t[5:]) - 2 for t in texts], device=x.device).reshape(x.shape)
    if bool(((exponents > high) & (digits > 0)).any()):
        raise InputError(f"the entry {float(size.max()):g} is too large: this encoding ends at 999e{high}")
    tiny = (exponents < low) | (digits == 0)
    mantissa = torch.where(tiny, torch.zeros_like(digits), digits)
    exponents = torch.where(tiny, torch.zeros_like(exponents), exponents)
    return (x < 0) & (mantissa > 0), mantissa, exponents


def join(negative: Tensor, mantissa: Tensor, exponent: Tensor) -> Tensor:
    """Return ±mantissa·10^exponent in float64, correctly rounded."""
    parts = zip(
        negative.flatten().tolist(), mantissa.flatten().tolist(), exponent.flatten().tolist(), strict=True
    )
    values = [float(f"{'-' if minus else ''}{m}e{e}") for minus, m, e in parts]
    return torch.tensor(values, dtype=torch.float64, device=mantissa.device).reshape(mantissa.shape)


class P10:
    """Sign, three digits, exponent."""

    vocabularies = (2, 10, 10, 10, 2 * EXPONENT + 1)

    @staticmethod
    def encode(numbers: Tensor) -> Tensor:
        """(*) real → (*, 5) token numbers, each counted within its own vocabulary."""
        negative, m, e = split(numbers)
        return torch.stack([negative.long(), m // 100, m // 10 % 10, m % 10, e + EXPONENT], dim=-1)

    @staticmethod
    def decode(tokens: Tensor) -> Tensor:
        """(*, 5) tokens → (*) float64."""
        minus, a, b, c, e = tokens.unbind(-1)
        return join(minus.bool(), 100 * a + 10 * b + c, e - EXPONENT)


class P1000:
    """Sign, mantissa, exponent."""

    vocabularies = (2, 1000, 2 * EXPONENT + 1)

    @staticmethod
    def encode(numbers: Tensor) -> Tensor:
        """(*) real → (*, 3) token numbers."""
        negative, m, e = split(numbers)
        return torch.stack([negative.long(), m, e + EXPONENT], dim=-1)

    @staticmethod
    def decode(tokens: Tensor) -> Tensor:
        """(*, 3) tokens → (*) float64."""
        minus, m, e = tokens.unbind(-1)
        return join(minus.bool(), m, e - EXPONENT)


class B1999:
    """Signed mantissa −999 … 999, exponent."""

    vocabularies = (1999, 2 * EXPONENT + 1)

    @staticmethod
    def encode(numbers: Tensor) -> Tensor:
        """(*) real → (*, 2) token numbers."""
        negative, m, e = split(numbers)
        return torch.stack([torch.where(negative, -m, m) + 999, e + EXPONENT], dim=-1)

    @staticmethod
    def decode(tokens: Tensor) -> Tensor:
        """(*, 2) tokens → (*) float64."""
        signed, e = tokens.unbind(-1)
        return join(signed < 999, (signed - 999).abs(), e - EXPONENT)


class FP15:
    """One token a number: signed mantissa and one of sixteen exponents, 28 816 tokens."""

    vocabularies = (FP15_MANTISSAS * FP15_COUNT,)

    @staticmethod
    def encode(numbers: Tensor) -> Tensor:
        """(*) real → (*, 1) token numbers; zero always takes the first exponent."""
        negative, m, e = split(numbers, FP15_FIRST, FP15_FIRST + FP15_COUNT - 1)
        rank = torch.where(m > 0, m - 99, m)
        signed = torch.where(negative, -rank, rank) + FP15_MANTISSAS // 2
        shift = torch.where(m > 0, e - FP15_FIRST, torch.zeros_like(e))
        return (signed * FP15_COUNT + shift).unsqueeze(-1)

    @staticmethod
    def decode(tokens: Tensor) -> Tensor:
        """(*, 1) tokens → (*) float64."""
        token = tokens.squeeze(-1)
        signed, e = token // FP15_COUNT - FP15_MANTISSAS // 2, token % FP15_COUNT + FP15_FIRST
        rank = signed.abs()
        return join(signed < 0, torch.where(rank > 0, rank + 99, rank), e)


NUMERALS: dict[str, type[P10] | type[P1000] | type[B1999] | type[FP15]] = {
    "p10": P10,
    "p1000": P1000,
    "b1999": B1999,
    "fp15": FP15,
}


class Numeral(Flatten):
    """An entry is a short run of number tokens; the decoder is that of ``flatten``, one value an entry.

    Only the first channel is written as tokens: numerals encode A itself, without a frame.
    """

    scheme: type[P10] | type[P1000] | type[B1999] | type[FP15]

    def __init__(self, width: int, channels: int, cues: int, n_max: int):
        super().__init__(width, channels, cues, n_max)
        del self.embed
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in self.scheme.vocabularies)

    def encode(self, channels: Tensor, cues: Tensor | None) -> Tensor:
        n = channels.shape[-1]
        tokens = self.scheme.encode(channels[:, 0].detach().flatten(-2))
        runs = torch.stack([table(tokens[..., i]) for i, table in enumerate(self.tables)], dim=-2)
        return self.shared((runs + self.positions[:n, :n].reshape(n * n, 1, -1)).flatten(1, 2), n, cues)


def numeral_encoding(name: str) -> type[Numeral]:
    """The encoding class of one scheme of :data:`NUMERALS`."""
    return type(name.upper(), (Numeral,), {"scheme": NUMERALS[name]})
