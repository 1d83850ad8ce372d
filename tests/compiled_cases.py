"""Shapes that the tests of compiled kernels compile, and matrices to try them on."""

from __future__ import annotations

import pytest
import torch

from neural_expm.kernels.compiled import toolchain

# Relative Frobenius error against float64, in roundings: a few products and squarings each.
ROUNDINGS = 40
# (n, dtype) that the tests compile: one entry of many matrices in a register, and pieces of rows; odd sizes, one entry
# past a register, complex, both precisions.
SHAPES = [
    (3, torch.float32),
    (5, torch.complex128),
    (17, torch.float32),
    (13, torch.float64),
    (18, torch.complex64),
]
SHARED = (56, torch.complex64)  # threads share a matrix

needs_compiler = pytest.mark.skipif(
    not any(toolchain.shutil.which(name) for name in toolchain.COMPILERS), reason="no C++ compiler"
)


def matrices(count: int, n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Norms from tiny to a few squarings."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(count, n, n, dtype=dtype, generator=generator) / n**0.5
    return (
        A
        * torch.logspace(-3, 0.7, count, dtype=dtype.to_real())[
            torch.randperm(count, generator=generator), None, None
        ]
    )


def relative(X: torch.Tensor, Y: torch.Tensor) -> float:
    Y = Y.to(X.dtype)
    error = torch.linalg.matrix_norm(X - Y) / torch.linalg.matrix_norm(Y)
    return float(error.max()) / torch.finfo(X.dtype).eps


def double(A: torch.Tensor) -> torch.Tensor:
    return A.to(torch.complex128 if A.is_complex() else torch.float64)
