"""exp and its Fréchet derivative for small matrices on a GPU: one launch, no word to the host.

A program holds a block of matrices in registers.  It takes their norms, finds the depth and the squarings of each by
the ladder, evaluates the network, squares by mask and writes; so that a launch can be captured in a CUDA graph.  The
matrices of a block share the deepest tier that one of them needs (a deeper tier serves smaller norms too), each with
its own squarings.  Complex matrices are pairs of real planes; a derivative is carried beside its value.

Needs triton (``pip install neural-expm[triton]``); import this module only where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_N = 32
# Matrices of a program, and warps, by the padded size, for real float32 values; wider numbers and pairs get fewer, so
# that registers suffice (tests/test_triton.py compiles for a GPU and looks for spills).
BLOCKS = {1: (128, 4), 2: (64, 4), 4: (32, 4), 8: (8, 4), 16: (1, 4), 32: (1, 8)}
# From this padded size on a product is a dot of the hardware, in full precision; below, broadcasts and sums.
DOT_SIZE = 16

# --- arithmetic on values (re,) or (re, im), and on pairs (value, derivative) -----------------------------------------


@triton.jit
def _mm(X, Y, DOT: tl.constexpr):
    if DOT:
        return tl.dot(X, Y, input_precision="ieee", out_dtype=X.dtype)
    else:
        return tl.sum(X[:, :, :, None] * Y[:, None, :, :], axis=2)


@triton.jit
def _multiply(X, Y, COMPLEX: tl.constexpr, DOT: tl.constexpr):
    if COMPLEX:
        return (
            _mm(X[0], Y[0], DOT) - _mm(X[1], Y[1], DOT),
            _mm(X[0], Y[1], DOT) + _mm(X[1], Y[0], DOT),
        )
    else:
        return (_mm(X[0], Y[0], DOT),)


@triton.jit
def _add(X, Y, COMPLEX: tl.constexpr):
    if COMPLEX:
        return (X[0] + Y[0], X[1] + Y[1])
    else:
        return (X[0] + Y[0],)


@triton.jit
def _product(X, Y, DUAL: tl.constexpr, COMPLEX: tl.constexpr, DOT: tl.constexpr):
    value = _multiply(X[0], Y[0], COMPLEX, DOT)
    if DUAL:
        left = _multiply(X[1], Y[0], COMPLEX, DOT)
        right = _multiply(X[0], Y[1], COMPLEX, DOT)
        return (value, _add(left, right, COMPLEX))
    else:
        return (value,)


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
def _scaled(X, scale, COMPLEX: tl.constexpr):
    if COMPLEX:
        return (X[0] * scale, X[1] * scale)
    else:
        return (X[0] * scale,)


@triton.jit
def _choose(where, X, Y, COMPLEX: tl.constexpr):
    if COMPLEX:
        return (tl.where(where, X[0], Y[0]), tl.where(where, X[1], Y[1]))
    else:
        return (tl.where(where, X[0], Y[0]),)


@triton.jit
def _load(data, offsets, mask, CONJUGATE: tl.constexpr, COMPLEX: tl.constexpr):
    if COMPLEX:
        im = tl.load(data + offsets + 1, mask=mask, other=0.0)
        if CONJUGATE:
            im = -im
        return (tl.load(data + offsets, mask=mask, other=0.0), im)
    else:
        return (tl.load(data + offsets, mask=mask, other=0.0),)


@triton.jit
def _norm(X, COMPLEX: tl.constexpr):
    """min(√(‖A‖₁‖A‖_∞), ‖A‖_F); NaN where A has NaN."""
    squared = X[0] * X[0]
    if COMPLEX:
        squared += X[1] * X[1]
        modulus = tl.sqrt(squared)
    else:
        modulus = tl.abs(X[0])
    frobenius = tl.sqrt(tl.sum(tl.sum(squared, axis=2), axis=1))
    mixed = tl.sqrt(tl.max(tl.sum(modulus, axis=1), axis=1)) * tl.sqrt(
        tl.max(tl.sum(modulus, axis=2), axis=1)
    )
    return tl.where(mixed < frobenius, mixed, frobenius)


# --- the kernel -------------------------------------------------------------------------------------------------------


@triton.jit
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
    outside_out,
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
    i = tl.arange(0, SIZE)[None, :, None]
    j = tl.arange(0, SIZE)[None, None, :]
    matrix = index[:, None, None]
    mask = (matrix < count) & (i < n) & (j < n)
    value = _load(A, matrix * a_matrix + i * a_row + j * a_column, mask, CONJUGATE_A, COMPLEX)

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
    for _ in tl.static_range(MAX_SQUARINGS):
        squarings += tl.where(norm <= reach, 0, 1)
        reach = reach * 2.0
    scale = tl.exp2(-squarings.to(norm.dtype))[:, None, None]
    deepest = tl.max(squarings, axis=0)

    start = (_scaled(value, scale, COMPLEX),)
    if DUAL:
        direction = _load(E, matrix * e_matrix + i * e_row + j * e_column, mask, CONJUGATE_E, COMPLEX)
        start = (start[0], _scaled(direction, scale, COMPLEX))
    else:
        held = index < count
        tl.store(tier_out + index, tl.zeros_like(level) + tier, mask=held)
        tl.store(squarings_out + index, squarings, mask=held)
        tl.store(outside_out + index, level == RUNGS, mask=held)

    square = _product(start, start, DUAL, COMPLEX, DOT)
    target = out + (matrix * n * n + i * n + j) * PARTS
    w = weights
    for t in tl.static_range(len(PRODUCTS)):
        if tier == t:
            tokens = (start, square)
            at = w
            for h in tl.static_range(2, PRODUCTS[t] + 1):
                scores = _combine(tokens, at, h, DUAL, COMPLEX)
                values = _combine(tokens, at + h, h, DUAL, COMPLEX)
                tokens = tokens + (_product(scores, values, DUAL, COMPLEX, DOT),)  # noqa: RUF005 (no * in triton)
                at += 2 * h
            X = _combine(tokens, at, PRODUCTS[t] + 1, DUAL, COMPLEX)
            identity = tl.where(i == j, tl.load(at + PRODUCTS[t] + 1), 0.0)
            if COMPLEX:
                now = (X[0][0] + identity, X[0][1])
            else:
                now = (X[0][0] + identity,)
            if DUAL:
                X = (now, X[1])
            else:
                X = (now,)
            for k in range(deepest):
                Y = _product(X, X, DUAL, COMPLEX, DOT)
                again = (k < squarings)[:, None, None]
                if DUAL:
                    X = (_choose(again, Y[0], X[0], COMPLEX), _choose(again, Y[1], X[1], COMPLEX))
                else:
                    X = (_choose(again, Y[0], X[0], COMPLEX),)
            result = X[1] if DUAL else X[0]
            tl.store(target, result[0], mask=mask)
            if COMPLEX:
                tl.store(target + 1, result[1], mask=mask)
        w += PRODUCTS[t] * PRODUCTS[t] + 2 * PRODUCTS[t]


# --- the face ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A ladder on a device, in the real dtype of the matrices.

    Attributes:
        radii, rung_tiers: of each rung.
        tier_radii: of each tier.
        weights: for each tier ``EquivariantTransformer.flat`` and then the read-out of I.
        products: of each tier.
        max_squarings: the domain ends at the last tier's radius times 2 to this power.
        derivative_level: as in ``Ladder``.
    """

    radii: Tensor
    rung_tiers: Tensor
    tier_radii: Tensor
    weights: Tensor
    products: tuple[int, ...]
    max_squarings: int
    derivative_level: int

    @classmethod
    def of(cls, network, dtype: torch.dtype, device: torch.device) -> Table:
        """The table of an ``EquivariantExponential``."""
        ladder, tiers = network.ladder, network.config["tiers"]
        weights = []
        for tier in network.tiers:
            weights += [tier.flat(dtype), torch.tensor([tier.identity], dtype=dtype)]
        return cls(
            torch.tensor(ladder.radii, dtype=dtype, device=device),
            torch.tensor([rung.tier for rung in ladder.rungs], dtype=torch.int32, device=device),
            torch.tensor([tier["radius"] for tier in tiers], dtype=dtype, device=device),
            torch.cat(weights).to(device),
            tuple(tier["products"] for tier in tiers),
            max(rung.squarings for rung in ladder.rungs),
            ladder.derivative_level,
        )


def exponential(A: Tensor, table: Table, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Out ← exp(A), each matrix by its own tier and squarings.

    Args:
        A: shape (batch, n, n), n ≤ 32, float32/float64/complex64/complex128, any strides.
        table: on the device of A.
        out: contiguous (batch, n, n).

    Returns:
        Tier and squarings of each matrix, (batch) int32; and whether it is beyond the ladder, (batch) bool: those are
        computed with the last rung and promise nothing.
    """
    tier = torch.empty(A.shape[0], dtype=torch.int32, device=A.device)
    squarings = torch.empty_like(tier)
    outside = torch.empty(A.shape[0], dtype=torch.bool, device=A.device)
    _launch(A, A, table, out, (tier, squarings, outside), dual=False)
    return tier, squarings, outside


def exponential_frechet(A: Tensor, E: Tensor, table: Table, out: Tensor) -> None:
    """Out ← L(A, E); A, E and ``out`` as in :func:`exponential`."""
    _launch(A, E, table, out, (out, out, out), dual=True)


def _strides(A: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The memory of A as reals, a lazy conjugation left off, and its strides in reals."""
    if not A.is_complex():
        return A, A.stride()
    return torch.view_as_real(A.conj() if A.is_conj() else A), tuple(2 * s for s in A.stride())


def _launch(A: Tensor, E: Tensor, table: Table, out: Tensor, notes: tuple[Tensor, ...], dual: bool) -> None:
    count, n = A.shape[0], A.shape[-1]
    if not 1 <= n <= LARGEST_N:
        raise ValueError(f"the Triton kernels serve n = 1 to {LARGEST_N}, got n = {n}; use the eager kernel")
    if not count:
        return
    constants = options(table, n, A.is_complex(), dual, A.is_conj(), E.is_conj())
    a, a_strides = _strides(A)
    e, e_strides = _strides(E)
    target = torch.view_as_real(out) if out.is_complex() else out
    if dual:
        notes = (target, target, target)
    _kernel[(triton.cdiv(count, constants["BLOCK"]),)](
        a,
        *a_strides,
        e,
        *e_strides,
        target,
        *notes,
        count,
        n,
        table.radii,
        table.rung_tiers,
        table.tier_radii,
        table.weights,
        **constants,
        num_warps=BLOCKS[constants["SIZE"]][1],
    )


def options(
    table: Table, n: int, is_complex: bool, dual: bool, a_conjugate: bool = False, e_conjugate: bool = False
) -> dict[str, Any]:
    """The constants that a kernel is compiled for."""
    size = triton.next_power_of_2(n)
    words = table.radii.element_size() // 4 * (1 + is_complex) * (1 + dual)
    return {
        "RUNGS": table.radii.shape[0],
        "LEAST": table.derivative_level,
        "PRODUCTS": table.products,
        "MAX_SQUARINGS": table.max_squarings,
        "CONJUGATE_A": a_conjugate,
        "CONJUGATE_E": e_conjugate,
        "DUAL": dual,
        "COMPLEX": is_complex,
        "BLOCK": max(1, BLOCKS[size][0] // words),
        "SIZE": size,
        "DOT": size >= DOT_SIZE,
    }
