"""The assembled inverse: as good as LAPACK's, with pivots of its own in every lane."""

from __future__ import annotations

import cases
import pytest
import torch
from assembled_cases import DTYPES, WIDTHS, before_a_wall, needs_code

import neural_expm
from neural_expm import refused
from neural_expm.kernels import assembled
from neural_expm.kernels.assembled import kernel as assembled_kernel
from neural_expm.kernels.assembled.inverse import InverseKernel

pytestmark = needs_code
# Roundings times the condition number: LAPACK's own are some two.
ROUNDINGS = 8


@pytest.fixture(params=WIDTHS, ids=lambda wide: "AVX-512" if wide else "AVX2")
def width(request, monkeypatch):
    """Registers of one width."""
    monkeypatch.setattr(assembled_kernel, "wide", lambda: request.param)


def matrices(count: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    """Some of which need a pivot from another row in every column, and scales far apart."""
    A = torch.randn(count, n, n, dtype=dtype, generator=cases.generator(n))
    A[::3] = A[::3].triu() + torch.eye(n)
    A[::3] = A[::3, torch.randperm(n, generator=cases.generator(1))]
    A[1::3].diagonal(dim1=-2, dim2=-1).zero_()
    return A * torch.logspace(-12, 12, count, dtype=dtype.to_real())[:, None, None]


def error(X: torch.Tensor, A: torch.Tensor) -> float:
    """In roundings, over the condition number."""
    right = torch.linalg.inv(A.to(torch.complex128 if A.is_complex() else torch.float64))
    norm = torch.linalg.matrix_norm
    return float((norm(X - right) / norm(right) ** 2 / norm(A)).max()) / torch.finfo(A.dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 3, 5, 8, 13, 16])
def test_as_good_as_lapack(width, n, dtype):
    kernel = InverseKernel(n, dtype)
    for count in (1, kernel.lanes + 1, 75):
        A = matrices(count, n, dtype)
        for B in (A, A.mT, A.mH, A.conj(), torch.zeros(count, 2 * n, n, dtype=dtype)[:, ::2].copy_(A)):
            if (memory := assembled_kernel._workspace.memory) is not None:
                memory.fill_(255)  # NaN: nothing is read before it is written
            assert error(kernel.value(B), B) < ROUNDINGS


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_without_an_inverse_spoils_no_other(width, dtype):
    kernel, A = InverseKernel(4, dtype), matrices(40, 4, dtype)
    good = kernel.value(A)
    A[5], A[6], A[7, 0, 0], A[8, 1, 1] = 0, 1, torch.nan, torch.inf
    X = kernel.value(A)
    others = torch.ones(40, dtype=torch.bool).index_fill(0, torch.arange(5, 9), False)
    assert torch.equal(X[others], good[others])
    assert not bool(torch.isfinite(X[~others]).flatten(1).all(1).any())


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_beyond_a_batch_is_touched(width, dtype):
    """Otherwise the process ends here."""
    A = before_a_wall(matrices(21, 3, dtype))
    assert error(InverseKernel(3, dtype).value(A), A) < ROUNDINGS


def test_newton_steps_take_it(machine_code):
    A = torch.randn(64, 5, 5, dtype=torch.float64, generator=cases.generator(0))
    with_code = refused._inverse(A)
    assert assembled.state()["inverse", 5, torch.float64] == "ready"
    machine_code.setenv("NEURAL_EXPM_ASSEMBLE", "0")
    assembled.forget()
    torch.testing.assert_close(with_code, refused._inverse(A))
    assert assembled.state()["inverse", 5, torch.float64] == "none"


def test_wrong_code_is_refused(machine_code):
    machine_code.setattr(InverseKernel, "discrepancy", lambda kernel: 1.0)
    A = torch.randn(64, 5, 5, dtype=torch.float64, generator=cases.generator(0))
    torch.testing.assert_close(refused._inverse(A), torch.linalg.inv(A))
    assert assembled.state()["inverse", 5, torch.float64] == "none"
    assert neural_expm.kernels.available()["assembled"].count("wrong")
