"""Triton kernels in the interpreter, on the CPU, against torch in double; and compiled for a GPU that is not there."""

from __future__ import annotations

import pytest
import torch
from triton_cases import DEVICE, QUIET, double, roundings, usage

import neural_expm
from neural_expm.kernels.triton import exponential as kernels

# Relative Frobenius error in roundings, over a batch with norms up to 10 (two or three squarings).
ROUNDINGS = 60


def table(dtype: torch.dtype) -> kernels.Table:
    real = dtype.to_real()
    return kernels.table(neural_expm.load("expm-equivariant", real).rules(real), real, DEVICE)


def batch(count: int, n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    A, E = torch.randn(2, count, n, n, dtype=dtype, generator=generator) / n
    sizes = torch.logspace(-2, 1, count, dtype=dtype.to_real())
    return (A * sizes[:, None, None]).to(DEVICE), E.to(DEVICE)


@pytest.mark.parametrize(
    ("n", "count", "dtype"),
    [
        (1, 1, torch.float32),
        (2, 70, torch.float64),
        (3, 5, torch.complex64),
        (5, 9, torch.float32),
        (17, 2, torch.complex128),
    ],
)
def test_values_and_derivatives(n, count, dtype):
    A, E = batch(count, n, dtype)
    value, derivative = torch.full_like(A, torch.nan), torch.full_like(A, torch.nan)
    tier, squarings, level = kernels.exponential(A, table(dtype), value)
    # The adjoint's derivative, as the backward pass asks for it: transposed strides, lazily conjugated.
    kernels.exponential_frechet(A.mH, E, table(dtype), derivative)
    wide = double(A).requires_grad_()
    expected = torch.linalg.matrix_exp(wide)
    (gradient,) = torch.autograd.grad(expected, wide, double(E))
    assert roundings(value, expected.detach()) < ROUNDINGS
    assert roundings(derivative, gradient) < ROUNDINGS
    assert bool((level < table(dtype).radii.shape[0]).all())
    assert int(squarings.max()) > 0 or count == 1
    assert bool((tier < len(table(dtype).products)).all())


@QUIET
def test_rows_outside_are_marked_and_no_other_is_touched():
    A, _ = batch(6, 3, torch.float32)
    A[1, 0, 0], A[4, 2, 1] = torch.nan, 1e6
    value = torch.full_like(A, torch.nan)
    _, _, level = kernels.exponential(A, table(torch.float32), value)
    outside = level == table(torch.float32).radii.shape[0]
    assert outside.tolist() == [False, True, False, False, True, False]
    inside = ~outside
    assert roundings(value[inside], torch.linalg.matrix_exp(double(A[inside]))) < ROUNDINGS


def test_an_empty_batch_and_a_matrix_too_large():
    kernels.exponential(torch.empty(0, 3, 3), table(torch.float32), torch.empty(0, 3, 3))
    with pytest.raises(ValueError, match="n = 33"):
        kernels.exponential(torch.empty(1, 33, 33), table(torch.float32), torch.empty(1, 33, 33))


@pytest.mark.slow
def test_compiled_for_a_gpu_the_kernel_stays_in_registers(tmp_path):
    used = usage(tmp_path, "expm", 3, torch.float32, dual=True)
    assert used["registers"] <= 255
    assert used["stack"] == 0
    assert used["shared"] <= 48 * 1024
