"""A few matrices: a call of torch costs as much as a product on them, and other things pay."""

from __future__ import annotations

import pytest
import torch
from assembled_cases import needs_code

import neural_expm
from neural_expm.kernels import assembled, compiled
from neural_expm.networks import plan


@pytest.mark.parametrize("n", [5, 33, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_a_few_matrices_are_told_apart_like_many(no_assembler, n, dtype, monkeypatch):
    """In plain numbers, and by tensor operations: no group is deeper or shallower for it."""
    generator = torch.Generator().manual_seed(n)
    A = torch.randn(7, n, n, dtype=dtype, generator=generator) / n**0.5
    A = A * torch.tensor([1e-3, 0.1, 1, 1, 3, 20, 1e-6])[:, None, None]
    few, report = neural_expm.expm(A, return_report=True)
    monkeypatch.setattr(plan, "FEW", 0)
    many, expected = neural_expm.expm(A, return_report=True)
    truth = torch.linalg.matrix_exp(A.to(torch.complex128))
    limit = 1e-5 if dtype == torch.float32 else 1e-13
    for value in (few, many):
        error = torch.linalg.matrix_norm(value - truth) / torch.linalg.matrix_norm(truth)
        assert float(error.max()) < limit
    assert bool(report.inside.all())
    assert torch.equal(report.squarings, expected.squarings)
    assert torch.equal(report.products, expected.products)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_one_of_a_few_outside_leaves_the_others_alone(no_assembler, bad):
    A = torch.randn(3, 33, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 6
    B = A.clone()
    B[1, 2, 3] = bad
    value, report = neural_expm.expm(B, return_report=True)
    assert report.inside.tolist() == [True, False, True]
    torch.testing.assert_close(value[::2], torch.linalg.matrix_exp(A)[::2], rtol=1e-13, atol=1e-13)


@needs_code
def test_code_for_few_large_matrices_is_written_once_it_is_worth_the_while(monkeypatch):
    monkeypatch.setenv("NEURAL_EXPM_ASSEMBLE", "1")
    compiled.forget()
    assembled.forget()
    A = torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 5
    truth = torch.linalg.matrix_exp(A)
    kernels = []
    for _ in range(assembled.WORTH_CALLS + 1):
        value, report = neural_expm.expm(A, return_report=True)
        torch.testing.assert_close(value, truth, rtol=1e-13, atol=1e-13)
        kernels.append(report.kernel)
    assert kernels == ["eager"] * (assembled.WORTH_CALLS - 1) + ["assembled"] * 2
    torch.testing.assert_close(neural_expm.expm(A), truth, rtol=1e-13, atol=1e-13)
    assembled.forget()
    # Many fill the lanes, and up to n = 12 code takes no time to speak of.
    assert neural_expm.explain("expm", A.expand(16, 20, 20)).kernel == "assembled"
    assert neural_expm.explain("expm", A[:12, :12]).kernel == "assembled"
    # A few complex ones would fill lanes with nothing.
    lone = torch.eye(28, dtype=torch.complex64).expand(2, 28, 28)
    for _ in range(2 * assembled.WORTH_CALLS):
        assert neural_expm.explain("expm", lone).kernel == "eager"
    assembled.forget()
