"""exp and its Fréchet derivative for small matrices on a GPU: one launch, no word to the host.

A program holds a block of matrices in registers.  It takes their norms, finds the depth and the squarings of each by
the ladder, evaluates the network, squares by mask and writes; so that a launch can be captured in a CUDA graph.  The
matrices of a block share the deepest tier that one of them needs (a deeper tier serves smaller norms too), each with
its own squarings.  A derivative is carried beside its value (``arithmetic.py``, which needs triton).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rules import LadderRules
from .arithmetic import (
    add_real,
    choose_pair,
    frobenius,
    launch,
    load,
    partition,
    product,
    scaled,
    store,
)

# --- attention over tokens, each a value or a pair --------------------------------------------------------------------


@triton.jit
def _plane(tokens, w, COUNT: tl.constexpr, MEMBER: tl.constexpr, PART: tl.constexpr):
    total = tl.load(w) * tokens[0][MEMBER][PART]
    for t in tl.static_range(1, COUNT):
        total += tl.load(w + t) * tokens[t][MEMBER][PART]
    return total


@triton.jit
def _member(tokens, w, COUNT: tl.constexpr, MEMBER: tl.constexpr, COMPLEX: tl.constexpr):
    if COMPLEX:
        return (_plane(tokens, w, COUNT, MEMBER, 0), _plane(tokens, w, COUNT, MEMBER, 1))
    else:
        return (_plane(tokens, w, COUNT, MEMBER, 0),)


@triton.jit
def _combine(tokens, w, COUNT: tl.constexpr, DUAL: tl.constexpr, COMPLEX: tl.constexpr):
    if DUAL:
        return (_member(tokens, w, COUNT, 0, COMPLEX), _member(tokens, w, COUNT, 1, COMPLEX))
    else:
        return (_member(tokens, w, COUNT, 0, COMPLEX),)


@triton.jit
def _norm(X, COMPLEX: tl.constexpr):
    """min(√(‖A‖₁‖A‖_∞), ‖A‖_F); NaN where A has NaN."""
    if COMPLEX:
        modulus = tl.sqrt(X[0] * X[0] + X[1] * X[1])
    else:
        modulus = tl.abs(X[0])
    guide = frobenius(X, COMPLEX)
    mixed = tl.sqrt(tl.max(tl.sum(modulus, axis=1), axis=1)) * tl.sqrt(
        tl.max(tl.sum(modulus, axis=2), axis=1)
    )
    return tl.where(mixed < guide, mixed, guide)


# --- the kernel -------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["count"])  # a batch of another size is no reason to compile again
@no_type_check  # the tuples grow while Triton unrolls the loops
def _kernel(
    A,
    a_matrix,
    a_row,
    a_column,
    E,
    e_matrix,
    e_row,
    e_column,
    out,
    tier_out,
    squarings_out,
    level_out,
    count,
    n,
    radii,
    rung_tiers,
    tier_radii,
    weights,
    RUNGS: tl.constexpr,
    LEAST: tl.constexpr,
    PRODUCTS: tl.constexpr,
    MAX_SQUARINGS: tl.constexpr,
    CONJUGATE_A: tl.constexpr,
    CONJUGATE_E: tl.constexpr,
    DUAL: tl.constexpr,
    COMPLEX: tl.constexpr,
    BLOCK: tl.constexpr,
    SIZE: tl.constexpr,
    DOT: tl.constexpr,
):
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    # 64 bits, since strides of a batch that lies last are as long as the batch.
    i = tl.arange(0, SIZE)[None, :, None].to(tl.int64)
    j = tl.arange(0, SIZE)[None, None, :].to(tl.int64)
    matrix = index[:, None, None]
    mask = (matrix < count) & (i < n) & (j < n)
    value = load(A, matrix * a_matrix + i * a_row + j * a_column, mask, CONJUGATE_A, COMPLEX)

    norm = _norm(value, COMPLEX)
    level = tl.zeros_like(norm).to(tl.int32)
    for r in tl.static_range(RUNGS):
        level += tl.where(norm <= tl.load(radii + r), 0, 1)
    if DUAL:
        level = tl.maximum(level, LEAST)
    tier = tl.max(tl.load(rung_tiers + tl.minimum(level, RUNGS - 1)), axis=0)
    radius = tl.load(tier_radii + tier)
    squarings = tl.zeros_like(level)
    reach = radius
    scale = tl.zeros_like(norm) + 1.0  # halved, since the exp2 of a GPU is approximate
    for _ in tl.static_range(MAX_SQUARINGS):
        squarings += tl.where(norm <= reach, 0, 1)
        scale = tl.where(norm <= reach, scale, 0.5 * scale)
        reach = reach * 2.0
    scale = scale[:, None, None]
    deepest = tl.max(squarings, axis=0)

    start = (scaled(value, scale, COMPLEX),)
    if DUAL:
        direction = load(E, matrix * e_matrix + i * e_row + j * e_column, mask, CONJUGATE_E, COMPLEX)
        start = (start[0], scaled(direction, scale, COMPLEX))
    else:
        held = index < count
        tl.store(tier_out + index, tl.zeros_like(level) + tier, mask=held)
        tl.store(squarings_out + index, squarings, mask=held)
        tl.store(level_out + index, level, mask=held)

    square = product(start, start, DUAL, COMPLEX, DOT)
    target = out + (matrix * n * n + i * n + j) * PARTS
    w = weights
    for t in tl.static_range(len(PRODUCTS)):
        if tier == t:
            tokens = (start, square)
            at = w
            for h in tl.static_range(2, PRODUCTS[t] + 1):
                scores = _combine(tokens, at, h, DUAL, COMPLEX)
                values = _combine(tokens, at + h, h, DUAL, COMPLEX)
                tokens = tokens + (product(scores, values, DUAL, COMPLEX, DOT),)  # noqa: RUF005 (no * in triton)
                at += 2 * h
            X = _combine(tokens, at, PRODUCTS[t] + 1, DUAL, COMPLEX)
            identity = tl.where(i == j, tl.load(at + PRODUCTS[t] + 1), 0.0)
            if DUAL:
                X = (add_real(X[0], identity, COMPLEX), X[1])
            else:
                X = (add_real(X[0], identity, COMPLEX),)
            for k in range(deepest):
                Y = product(X, X, DUAL, COMPLEX, DOT)
                X = choose_pair((k < squarings)[:, None, None], Y, X, DUAL, COMPLEX)
            store(target, X[1] if DUAL else X[0], mask, COMPLEX)
        w += PRODUCTS[t] * PRODUCTS[t] + 2 * PRODUCTS[t]


# --- the face ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A ladder on a device, in the real dtype of the matrices; attributes as in :class:`LadderRules`."""

    radii: Tensor
    rung_tiers: Tensor
    tier_radii: Tensor
    weights: Tensor
    products: tuple[int, ...]
    max_squarings: int
    derivative_level: int

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """What the kernel reads, in its order."""
        return self.radii, self.rung_tiers, self.tier_radii, self.weights


@lru_cache(maxsize=64)
def table(rules: LadderRules, dtype: torch.dtype, device: torch.device) -> Table:
    """The table of a network, made once; ``dtype`` is that of the reals."""
    numbers = dict(vars(rules))
    for name in ("radii", "tier_radii", "weights"):
        numbers[name] = torch.tensor(numbers[name], dtype=dtype, device=device)
    numbers["rung_tiers"] = torch.tensor(rules.rung_tiers, dtype=torch.int32, device=device)
    return Table(**numbers)


def exponential(A: Tensor, table: Table, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Out ← exp(A), each matrix by its own tier and squarings.

    Args:
        A: shape (batch, n, n), n ≤ 32, float32/float64/complex64/complex128, any strides.
        table: on the device of A.
        out: contiguous (batch, n, n).

    Returns:
        Tier and squarings of each matrix, (batch) int32; and the first rung that reaches its norm, (batch) uint8.  That
        is the number of rungs for those beyond the ladder: they are computed with the last rung and promise nothing.

    Raises:
        ValueError: n is above 32.
    """
    tier = torch.empty(A.shape[0], dtype=torch.int32, device=A.device)
    squarings, level = torch.empty_like(tier), torch.empty_like(tier, dtype=torch.uint8)
    launch(_kernel, A, A, out, (tier, squarings, level), table.arrays, options(table, A, dual=False))
    return tier, squarings, level


def exponential_frechet(A: Tensor, E: Tensor, table: Table, out: Tensor) -> None:
    """Out ← L(A, E); A, E and ``out`` as in :func:`exponential`."""
    launch(_kernel, A, E, out, [table.radii] * 3, table.arrays, options(table, A, dual=True))


def options(table: Table, A: Tensor, dual: bool) -> dict[str, Any]:
    """The constants that the kernel is compiled for."""
    return {
        "RUNGS": table.radii.shape[0],
        "LEAST": table.derivative_level,
        "PRODUCTS": table.products,
        "MAX_SQUARINGS": table.max_squarings,
        **partition(A.shape[-1], A.dtype, dual),
    }
