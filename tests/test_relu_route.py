"""The ReLU checkpoints behind the public functions: domain, fallback, report, gradients."""

from __future__ import annotations

import pytest
import torch
from relu_cases import box_matrices, spd_matrices, square_root

import neural_expm
from neural_expm.errors import OutsideDomainError


def test_proven_exponential_answers_inside_its_box_and_leaves_the_rest_to_the_exact_algorithm():
    A = torch.cat([box_matrices(3, 2.0, 5, seed=1), 3 * torch.eye(3, dtype=torch.float64)[None]])
    E, report = neural_expm.expm(A, model="expm-relu-proven-n3", return_report=True)
    exact = torch.linalg.matrix_exp(A)
    relative = torch.linalg.matrix_norm(E - exact) / torch.linalg.matrix_norm(exact)
    assert report.bound_kind == "certified"
    assert report.checkpoint == "expm-relu-proven-n3"
    assert report.inside[:-1].all()
    assert not report.inside[-1]
    assert (relative[:-1] <= report.bound[:-1]).all()
    assert relative[:-1].max() > 1e-9  # the network did answer
    assert relative[-1] < 1e-14


def test_proven_square_root_keeps_its_relative_bound():
    A = spd_matrices(3, 0.1, 1.0, 10, seed=2) * (1 - 1e-12)
    R, report = neural_expm.sqrtm(A, model="sqrtm-relu-proven-n3", return_report=True)
    exact = square_root(A)
    inside = report.inside
    error = torch.linalg.matrix_norm(R - exact, 2) / torch.linalg.matrix_norm(exact, 2)
    assert inside.double().mean() > 0.5  # matrices with an eigenvalue on the edge may fall out by rounding
    assert (error[inside] <= report.bound[inside]).all()


def test_trained_network_reports_a_statistical_bound():
    A = 0.3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    E, report = neural_expm.expm(A, model="expm-relu-n4-50k", return_report=True)
    assert report.bound_kind == "statistical"
    assert bool(report.inside)
    exact = torch.linalg.matrix_exp(A)
    assert torch.linalg.matrix_norm(E - exact) / torch.linalg.matrix_norm(exact) < 3 * report.bound


@pytest.mark.parametrize("size", [2, 4])
def test_another_size_is_outside(size):
    A = torch.eye(size, dtype=torch.float64)
    with pytest.raises(OutsideDomainError):
        neural_expm.expm(A, model="expm-relu-proven-n3", outside="raise")
    assert neural_expm.expm(A, model="expm-relu-proven-n3", outside="nan").isnan().all()


def test_single_precision_input_keeps_its_dtype_and_the_gradient_arrives():
    A = (0.2 * torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(1))).requires_grad_()
    E = neural_expm.expm(A, model="expm-relu-proven-n3")
    (gradient,) = torch.autograd.grad(E.sum(), A)
    B = A.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(torch.linalg.matrix_exp(B).sum(), B)
    assert E.dtype == torch.float32
    assert torch.allclose(gradient.double(), exact, rtol=1e-4, atol=1e-5)
