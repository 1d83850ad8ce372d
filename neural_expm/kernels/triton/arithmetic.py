"""What the Triton kernels share: products of small matrices in registers, and how a batch is cut into programs.

A program holds a block of matrices as one tensor (BLOCK, SIZE, SIZE), n padded with zeros to a power of two.  A real
matrix is a tuple (re,), a complex one (re, im): planes, since Triton has no complex numbers.  What is differentiated
is a pair (value, derivative), what is not a tuple (value,), so that one text serves all four.

Needs triton (``pip install neural-expm[triton]``); import this module only where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

# --- matrices: (re,) or (re, im) --------------------------------------------------------------------------------------


@triton.jit
def _mm(X, Y, DOT: tl.constexpr):
    if DOT:
        return tl.dot(X, Y, input_precision="ieee", out_dtype=X.dtype)
    else:
        return tl.sum(X[:, :, :, None] * Y[:, None, :, :], axis=2)


@triton.jit
def multiply(X, Y, COMPLEX: tl.constexpr, DOT: tl.constexpr):
    """X Y."""
    if COMPLEX:
        return (
            _mm(X[0], Y[0], DOT) - _mm(X[1], Y[1], DOT),
            _mm(X[0], Y[1], DOT) + _mm(X[1], Y[0], DOT),
        )
    else:
        return (_mm(X[0], Y[0], DOT),)


@triton.jit
def add(X, Y, COMPLEX: tl.constexpr):
    """X + Y."""
    if COMPLEX:
        return (X[0] + Y[0], X[1] + Y[1])
    else:
        return (X[0] + Y[0],)


@triton.jit
def add_real(X, real, COMPLEX: tl.constexpr):
    """X + a real tensor."""
    if COMPLEX:
        return (X[0] + real, X[1])
    else:
        return (X[0] + real,)


@triton.jit
def scaled(X, scale, COMPLEX: tl.constexpr):
    """X times a real scale, one number or one a matrix."""
    if COMPLEX:
        return (X[0] * scale, X[1] * scale)
    else:
        return (X[0] * scale,)


@triton.jit
def choose(where, X, Y, COMPLEX: tl.constexpr):
    """X where ``where``, else Y."""
    if COMPLEX:
        return (tl.where(where, X[0], Y[0]), tl.where(where, X[1], Y[1]))
    else:
        return (tl.where(where, X[0], Y[0]),)


@triton.jit
def squares(X, COMPLEX: tl.constexpr):
    """|x|² of each entry."""
    if COMPLEX:
        return X[0] * X[0] + X[1] * X[1]
    else:
        return X[0] * X[0]


@triton.jit
def frobenius(X, COMPLEX: tl.constexpr):
    """‖·‖_F of each matrix."""
    return tl.sqrt(tl.sum(tl.sum(squares(X, COMPLEX), axis=2), axis=1))


# --- values or pairs --------------------------------------------------------------------------------------------------


@triton.jit
def product(X, Y, DUAL: tl.constexpr, COMPLEX: tl.constexpr, DOT: tl.constexpr):
    """(X + ε dX)(Y + ε dY)."""
    value = multiply(X[0], Y[0], COMPLEX, DOT)
    if DUAL:
        left = multiply(X[1], Y[0], COMPLEX, DOT)
        right = multiply(X[0], Y[1], COMPLEX, DOT)
        return (value, add(left, right, COMPLEX))
    else:
        return (value,)


@triton.jit
def choose_pair(where, X, Y, DUAL: tl.constexpr, COMPLEX: tl.constexpr):
    """X where ``where``, else Y."""
    if DUAL:
        return (choose(where, X[0], Y[0], COMPLEX), choose(where, X[1], Y[1], COMPLEX))
    else:
        return (choose(where, X[0], Y[0], COMPLEX),)


# --- memory -----------------------------------------------------------------------------------------------------------


@triton.jit
def load(data, offsets, mask, CONJUGATE: tl.constexpr, COMPLEX: tl.constexpr):
    """The matrices at ``offsets``, in reals; zeros outside the mask."""
    if COMPLEX:
        im = tl.load(data + offsets + 1, mask=mask, other=0.0)
        if CONJUGATE:
            im = -im
        return (tl.load(data + offsets, mask=mask, other=0.0), im)
    else:
        return (tl.load(data + offsets, mask=mask, other=0.0),)


@triton.jit
def store(target, X, mask, COMPLEX: tl.constexpr):
    """Write matrices, re beside im."""
    tl.store(target, X[0], mask=mask)
    if COMPLEX:
        tl.store(target + 1, X[1], mask=mask)


# --- launching --------------------------------------------------------------------------------------------------------


def partition(n: int, dtype: torch.dtype, dual: bool) -> dict[str, Any]:
    """The constants that cut a batch of n × n matrices of ``dtype`` into programs.

    Raises:
        ValueError: the kernels do not serve this n.
    """
    if not 1 <= n <= LARGEST_N:
        raise ValueError(f"the Triton kernels serve n = 1 to {LARGEST_N}, got n = {n}; use the eager kernel")
    size = triton.next_power_of_2(n)
    words = dtype.itemsize // 4 * (1 + dual)
    return {
        "DUAL": dual,
        "COMPLEX": dtype.is_complex,
        "BLOCK": max(1, BLOCKS[size][0] // words),
        "SIZE": size,
        "DOT": size >= DOT_SIZE,
    }


def launch(
    kernel: triton.JITFunction,
    A: Tensor,
    E: Tensor,
    out: Tensor,
    notes: Sequence[Tensor],
    numbers: Sequence[Tensor],
    constants: dict[str, Any],
) -> None:
    """Run a kernel on a batch of shape (batch, n, n).

    Args:
        A, E: any strides, lazily conjugated or not.
        out: contiguous.
        notes: what the kernel writes of each matrix.
        numbers: what it reads.
        constants: with those of :func:`partition`.
    """
    if not A.shape[0]:
        return
    with torch.cuda.device_of(A):  # triton launches on the current device
        kernel[(triton.cdiv(A.shape[0], constants["BLOCK"]),)](
            *_source(A),
            *_source(E),
            torch.view_as_real(out) if out.is_complex() else out,
            *notes,
            A.shape[0],
            A.shape[-1],
            *numbers,
            **constants,
            CONJUGATE_A=A.is_conj(),
            CONJUGATE_E=E.is_conj(),
            num_warps=BLOCKS[constants["SIZE"]][1],
        )


def _source(A: Tensor) -> tuple[Tensor, int, int, int]:
    """The memory of A as reals, a lazy conjugation left off, and its strides in reals."""
    if not A.is_complex():
        matrix, row, column = A.stride()
        return A, matrix, row, column
    matrix, row, column = (2 * s for s in A.stride())
    return torch.view_as_real(A.conj() if A.is_conj() else A), matrix, row, column
