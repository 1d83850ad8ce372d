"""sign, the square root and their Fréchet derivatives for small matrices on a GPU: one launch, no word to the host.

The mathematics and the certificate are those of ``networks/composition.py``.  A program holds a block of matrices in
registers (``arithmetic.py``); every matrix has its own stages (those for a real spectrum if it is exactly
Hermitian), its own passes, and stands still by mask once its residual is accepted, its certificate lost, or its passes
spent.  The block ends with its last matrix.  Nothing leaves a launch but results, so that it can be captured in a CUDA
graph.

A stage p(x) = ax + bx³ + cx⁵ is written x h(x²): with W = X² (sign) or ZY (square root) and h = aI + bW + cW²,
X ← X h, Z ← h Z.  The W of the next stage shows the residual of this one, so that the residual costs no product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..composition import SHARPER
from ..rules import StageRules
from .arithmetic import (
    add,
    add_real,
    choose_pair,
    frobenius,
    launch,
    load,
    multiply,
    partition,
    product,
    scaled,
    store,
)

# Numbers before the stages in ``Table.numbers``, and numbers of a stage.
HEAD = tl.constexpr(5)
ROW = tl.constexpr(4)


@triton.jit
def _is_hermitian(A, offsets, mirrored, mask, COMPLEX: tl.constexpr):
    """Whether A = Aᴴ to the last bit; not where A has NaN."""
    X = load(A, offsets, mask, False, COMPLEX)
    Y = load(A, mirrored, mask, True, COMPLEX)
    differs = (X[0] != Y[0]).to(tl.int32)
    if COMPLEX:
        differs += (X[1] != Y[1]).to(tl.int32)
    return tl.sum(tl.sum(differs, axis=2), axis=1) == 0


@triton.jit
def _spectral_bound(X, tiny, COMPLEX: tl.constexpr, DOT: tl.constexpr):
    """An upper bound of the spectral radius: min(‖A‖_F, ‖A²‖_F^{1/2}), tiny for A = 0."""
    norm = frobenius(X, COMPLEX)
    root = tl.sqrt(frobenius(multiply(X, X, COMPLEX, DOT), COMPLEX))
    bound = tl.where(root < norm, root, norm)
    return tl.where(bound < tiny, tiny, bound)


@triton.jit
def _within(W, limit, good, COMPLEX: tl.constexpr, DOT: tl.constexpr, TIMES: tl.constexpr):
    """``good``, or ‖W^{2^k}‖_F ≤ limit^{2^k} for a k up to ``TIMES``."""
    for _ in range(TIMES):
        W = multiply(W, W, COMPLEX, DOT)
        limit = limit * limit
        good = good | (frobenius(W, COMPLEX) <= limit)
    return good


@triton.jit
def _factor(W, a, b, c, eye, DUAL: tl.constexpr, COMPLEX: tl.constexpr, DOT: tl.constexpr):
    """The factor h = aI + bW + cW²."""
    square = product(W, W, DUAL, COMPLEX, DOT)
    h = add(scaled(W[0], b, COMPLEX), scaled(square[0], c, COMPLEX), COMPLEX)
    if DUAL:
        return (
            add_real(h, a * eye, COMPLEX),
            add(scaled(W[1], b, COMPLEX), scaled(square[1], c, COMPLEX), COMPLEX),
        )
    else:
        return (add_real(h, a * eye, COMPLEX),)


@triton.jit
def _accepted(residual, norm, numbers, n):
    """Whether a residual is what rounding leaves: at most min(unit · n · max(1, ‖X‖²), largest)."""
    size = norm * norm
    limit = tl.load(numbers + 2) * n * tl.where(size > 1.0, size, 1.0)
    largest = tl.load(numbers + 3)
    return residual <= tl.where(limit < largest, limit, largest)


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
    passes_out,
    residual_out,
    accepted_out,
    scale_out,
    hermitian_out,
    count,
    n,
    numbers,
    ROOT: tl.constexpr,
    HERMITIAN_STAGES: tl.constexpr,
    GENERAL_STAGES: tl.constexpr,
    PASSES: tl.constexpr,
    TIMES: tl.constexpr,
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
    offsets = matrix * a_matrix + i * a_row + j * a_column
    hermitian = _is_hermitian(A, offsets, matrix * a_matrix + j * a_row + i * a_column, mask, COMPLEX)
    value = load(A, offsets, mask, CONJUGATE_A, COMPLEX)
    # Zero outside n × n, where the padding of everything else has to stay zero too.
    zero = tl.zeros_like(value[0])
    eye = tl.where((i == j) & (i < n), 1.0, 0.0).to(zero.dtype)

    bound = _spectral_bound(value, tl.load(numbers + 4), COMPLEX, DOT)
    scale = tl.load(numbers + tl.where(hermitian, 0, 1)) / bound
    by = scale[:, None, None]
    if DUAL:
        direction = load(E, matrix * e_matrix + i * e_row + j * e_column, mask, CONJUGATE_E, COMPLEX)
        X = (scaled(value, by, COMPLEX), scaled(direction, by, COMPLEX))
    else:
        X = (scaled(value, by, COMPLEX),)
    if ROOT:
        unit = (zero + eye, zero) if COMPLEX else (zero + eye,)
        if DUAL:
            Z = (unit, (zero, zero) if COMPLEX else (zero,))
        else:
            Z = (unit,)
        W = product(Z, X, DUAL, COMPLEX, DOT)
    else:
        W = product(X, X, DUAL, COMPLEX, DOT)
    distance = frobenius(add_real(W[0], -eye, COMPLEX), COMPLEX)

    first = tl.where(hermitian, 0, HERMITIAN_STAGES)
    last = tl.where(hermitian, HERMITIAN_STAGES, GENERAL_STAGES)
    open_ = index < count
    kept = open_
    stage = tl.zeros_like(first)
    passes = tl.zeros_like(first)
    residual = tl.full(scale.shape, float("inf"), scale.dtype)
    while tl.max(open_.to(tl.int32), axis=0) > 0:
        row = numbers + HEAD + (first + stage) * ROW
        if not DUAL:
            limit = tl.load(row + 3)
            norm = frobenius(W[0], COMPLEX)
            good = (norm <= limit) | (1.0 + distance <= limit)
            unsure = tl.where(open_ & kept & (limit < float("inf")), tl.where(good, 0, 1), 0)
            if tl.max(unsure, axis=0) > 0:
                good = _within(W[0], limit, good, COMPLEX, DOT, TIMES)
            kept = kept & (good | hermitian)
        a = tl.load(row)[:, None, None]
        b = tl.load(row + 1)[:, None, None]
        c = tl.load(row + 2)[:, None, None]
        h = _factor(W, a, b, c, eye, DUAL, COMPLEX, DOT)
        moving = open_[:, None, None]
        X = choose_pair(moving, product(X, h, DUAL, COMPLEX, DOT), X, DUAL, COMPLEX)
        if ROOT:
            Z = choose_pair(moving, product(h, Z, DUAL, COMPLEX, DOT), Z, DUAL, COMPLEX)
            W = product(Z, X, DUAL, COMPLEX, DOT)
        else:
            W = product(X, X, DUAL, COMPLEX, DOT)
        distance = frobenius(add_real(W[0], -eye, COMPLEX), COMPLEX)

        ended = open_ & (stage + 1 == last)
        stage = tl.where(open_ & (stage + 1 < last), stage + 1, 0)
        passes += ended.to(tl.int32)
        residual = tl.where(ended, distance, residual)
        taken = _accepted(distance, frobenius(X[0], COMPLEX), numbers, n)
        stays = tl.where(taken, 0, 1) * (kept & (distance < float("inf")) & (passes < PASSES)).to(tl.int32)
        open_ = open_ & ((stage > 0) | (ended & (stays > 0)))

    norm = frobenius(X[0], COMPLEX)  # as scaled: what is accepted has to do with no unit of A
    result = X[1] if DUAL else X[0]
    if DUAL and not ROOT:
        # D ← ½(D − SDS), what SD + DS = 0 leaves: see kernels/composition.py.
        other = multiply(multiply(X[0], X[1], COMPLEX, DOT), X[0], COMPLEX, DOT)
        result = scaled(add(X[1], scaled(other, -1.0, COMPLEX), COMPLEX), 0.5, COMPLEX)
    if ROOT:
        # (A/c²)^{1/2} = A^{1/2}/c, and the derivative scales alike: its direction was divided by c² too.
        result = scaled(result, (1.0 / tl.sqrt(scale))[:, None, None], COMPLEX)
    store(out + (matrix * n * n + i * n + j) * PARTS, result, mask, COMPLEX)
    if not DUAL:
        held = index < count
        accepted = kept & _accepted(residual, norm, numbers, n)
        tl.store(passes_out + index, passes, mask=held)
        tl.store(residual_out + index, residual, mask=held)
        tl.store(accepted_out + index, accepted, mask=held)
        tl.store(scale_out + index, scale, mask=held)
        tl.store(hermitian_out + index, hermitian, mask=held)


# --- the face ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A composition on a device, in the real dtype of the matrices.

    Attributes:
        numbers: factors of the scale (Hermitian, general), n·‖X‖²-th part of the residual accepted, the largest one,
            the least norm; then a row (a, b, c, R²) for each stage, Hermitian ones first.
    """

    numbers: Tensor
    root: bool
    hermitian_stages: int
    general_stages: int
    passes: int


@lru_cache(maxsize=64)
def table(rules: StageRules, root: bool, dtype: torch.dtype, device: torch.device) -> Table:
    """The table of a network, made once; ``dtype`` is that of the reals, ``root`` means sqrtm rather than sign."""
    # W = A/c² needs the square of the spectral radius that X = W^{1/2} needs.
    general = rules.scale**2 if root else rules.scale
    limits = torch.finfo(dtype)
    numbers = [1.0, general, rules.unit * limits.eps, rules.largest, limits.tiny]
    hermitian, stages = ([*zip(*[iter(flat)] * 3, strict=True)] for flat in (rules.hermitian, rules.general))
    for row in hermitian:
        numbers += [*row, math.inf]
    for row, radius in zip(stages, rules.radii, strict=True):
        numbers += [*row, radius * radius]
    on_device = torch.tensor(numbers, dtype=dtype, device=device)
    return Table(on_device, root, len(hermitian), len(stages), rules.passes)


@dataclass(frozen=True)
class Notes:
    """Of each matrix, with shape (batch).

    Attributes:
        passes: taken, int32.
        residual: ‖X² − I‖_F after the last pass, real.
        accepted: the certificate holds, bool.
        scale: that the matrix was multiplied by, real.
        hermitian: exactly so, bool.
    """

    passes: Tensor
    residual: Tensor
    accepted: Tensor
    scale: Tensor
    hermitian: Tensor


def composition(A: Tensor, table: Table, out: Tensor) -> Notes:
    """Out ← sign(A) or the principal square root.

    Args:
        A: shape (batch, n, n), n ≤ 32, float32/float64/complex64/complex128, any strides.
        table: on the device of A.
        out: contiguous (batch, n, n); worthless where the notes do not accept.

    Raises:
        ValueError: n is above 32.
    """
    whole = torch.empty(A.shape[0], dtype=torch.int32, device=A.device)
    real = torch.empty_like(whole, dtype=table.numbers.dtype)
    yes = torch.empty_like(whole, dtype=torch.bool)
    notes = Notes(whole, real, yes, torch.empty_like(real), torch.empty_like(yes))
    launch(_kernel, A, A, out, list(vars(notes).values()), [table.numbers], options(table, A, dual=False))
    return notes


def composition_frechet(A: Tensor, E: Tensor, table: Table, out: Tensor) -> None:
    """Out ← L(A, E), by the passes that A itself needs; A, E and ``out`` as in :func:`composition`."""
    launch(_kernel, A, E, out, [table.numbers] * 5, [table.numbers], options(table, A, dual=True))


def options(table: Table, A: Tensor, dual: bool) -> dict[str, Any]:
    """The constants that the kernel is compiled for."""
    return {
        "ROOT": table.root,
        "HERMITIAN_STAGES": table.hermitian_stages,
        "GENERAL_STAGES": table.general_stages,
        "PASSES": table.passes,
        "TIMES": SHARPER,
        **partition(A.shape[-1], A.dtype, dual),
    }
