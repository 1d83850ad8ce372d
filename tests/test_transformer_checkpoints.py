"""The shipped encoder–decoder checkpoints behind the public functions: routing, bounds, the two derivatives."""

import dataclasses

import pytest
import torch

import neural_expm
from neural_expm import surrogate
from neural_expm.domain import Reason
from neural_expm.errors import InputError, OutsideDomainError, UndefinedFunctionError, UnknownModelError
from neural_expm.training.datasets import held_out
from neural_expm.training.frechet import adjoint_frechet
from neural_expm.training.metrics import relative_error

RECORDS = [r for r in neural_expm.list_models() if r.family == "transformer"]
FUNCTIONS = {"expm": neural_expm.expm, "sign": neural_expm.sign, "sqrtm": neural_expm.sqrtm}
EXP = "expm-transformer-block"

#: Relative error of exact derivatives in float32: about a hundred roundings times the condition of the function.
EXACT_GRADIENT = 2e-4

every_record = pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.name)


def pairs(record, n, count=200, split="test"):
    entry = {k: v for k, v in record.measured["distribution"].items() if k != "weight"}
    return held_out(record.function, entry.pop("distribution"), n, count, split, **entry)


def outsider(record, n=4):
    """A matrix that every domain here leaves out: far from normal, and large."""
    shear = torch.eye(n)
    shear[0, 1] = 300.0
    return shear


def test_there_is_a_checkpoint_for_each_function():
    assert {r.function for r in RECORDS} == {"expm", "sign", "sqrtm"}


@every_record
def test_the_record_says_what_the_issue_of_a_figure_is(record):
    measured = record.measured
    assert record.bound_kind == "statistical"
    assert record.size <= 4_000_000
    assert measured["samples"] >= 100_000
    assert measured["calibration_samples"] >= 100_000
    bounds = measured["conformal_by_size"].values()
    assert record.bound == max(b["0.99"] for b in bounds) > max(b["0.95"] for b in bounds)
    for found in measured["coverage_by_size"].values():
        # 14 300 matrices of a size in either set: standard errors 0.0026 and 0.0012, five of them allowed.
        assert abs(found["0.95"] - 0.95) < 0.013
        assert abs(found["0.99"] - 0.99) < 0.006
    assert measured["parts"]["network"]["mean"] < measured["parts"]["baseline"]["mean"]
    assert record.trained_by.startswith("python -m neural_expm.training fit --recipe ")
    assert "baseline" in record.card


@every_record
@pytest.mark.parametrize("n", [2, 5, 8])
def test_answers_keep_the_stated_bound(record, n):
    """1 000 matrices of one size: 99 % within the bound, give or take three standard errors."""
    matrices, values = pairs(record, n, 1000)
    result, report = FUNCTIONS[record.function](matrices.float(), model=record.name, return_report=True)
    assert report.inside.all()
    assert report.bound_kind == "statistical"
    assert (report.bound == record.measured["conformal_by_size"][str(n)]["0.99"]).all()
    assert (report.bound <= record.bound).all()
    assert "statistical" in str(report)
    errors = relative_error(result.double(), values)
    assert (errors <= report.bound[0]).double().mean() > 0.98
    assert errors.mean() < 3 * record.measured["relative_error"]["mean"]


@every_record
def test_rows_outside_get_the_exact_algorithm(record):
    matrices, values = pairs(record, 4, 5)
    batch = matrices.float()
    batch[2] = outsider(record)
    result, report = FUNCTIONS[record.function](batch, model=record.name, return_report=True)
    assert report.inside.tolist() == [True, True, False, True, True]
    exact = FUNCTIONS[record.function](batch[2])
    torch.testing.assert_close(result[2], exact, rtol=1e-4, atol=1e-4)
    rows = [0, 1, 3, 4]
    assert relative_error(result[rows].double(), values[rows]).max() < 5 * record.bound
    torch.testing.assert_close(
        result[rows], FUNCTIONS[record.function](batch[rows], model=record.name), rtol=1e-4, atol=1e-5
    )


@every_record
@pytest.mark.parametrize("grad", ["exact", "network"])
def test_the_two_derivatives(record, grad):
    matrices, _ = pairs(record, 4, 40)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(matrices.shape, generator=generator, dtype=torch.float64)
    batch = matrices.float()
    if record.function == "expm":
        batch[7] = outsider(record)
    leaf = batch.clone().requires_grad_()
    result = FUNCTIONS[record.function](leaf, model=record.name, grad=grad)
    (gradient,) = torch.autograd.grad(result, leaf, weights.float())
    exact = adjoint_frechet(record.function, batch.double(), weights)
    if record.domain.structure != "general":
        gradient, exact = gradient + gradient.mT, exact + exact.mT
    scale = exact.flatten(1).norm(dim=1) + 1e-2 * weights.flatten(1).norm(dim=1)
    errors = (gradient.double() - exact).flatten(1).norm(dim=1) / scale
    if grad == "exact":
        assert errors.max() < EXACT_GRADIENT
    else:
        network = neural_expm.load(record.name)
        other = batch.clone().requires_grad_()
        (expected,) = torch.autograd.grad(network(other), other, weights.float())
        expected = expected + expected.mT if record.domain.structure != "general" else expected
        inside = [i for i in range(40) if not (record.function == "expm" and i == 7)]
        torch.testing.assert_close(gradient[inside], expected[inside], rtol=1e-3, atol=1e-4)
        assert 1e-5 < errors[inside].median() < 0.3
        if record.function == "expm":
            assert errors[7] < EXACT_GRADIENT, "outside, the derivative is the exact one"


@pytest.mark.parametrize("grad", ["exact", "network"])
def test_other_dtypes_shapes_and_empty_batches(grad):
    matrices, values = pairs(RECORDS[0], 3, 6)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        leaf = matrices.to(dtype).view(2, 3, 3, 3).requires_grad_()
        result = neural_expm.expm(leaf, model=EXP, grad=grad)
        assert result.dtype == dtype
        assert result.shape == (2, 3, 3, 3)
        assert relative_error(result.detach().double().view(6, 3, 3), values).max() < 0.05
        result.sum().backward()
        assert torch.isfinite(leaf.grad).all()
    empty = torch.zeros(0, 3, 3, requires_grad=True)
    assert neural_expm.expm(empty, model=EXP, grad=grad).shape == (0, 3, 3)


def test_complex_and_large_matrices_are_outside():
    _, report = neural_expm.expm(torch.eye(3, dtype=torch.complex64), model=EXP, return_report=True)
    assert report.code.item() == Reason.COMPLEX
    _, report = neural_expm.expm(torch.eye(9), model=EXP, return_report=True)
    assert report.code.item() == Reason.SIZE


@pytest.mark.parametrize("grad", ["exact", "network"])
def test_what_becomes_of_rows_outside_can_be_chosen(grad):
    batch = torch.stack([0.5 * torch.eye(3), 50 * torch.eye(3)])
    with pytest.raises(OutsideDomainError, match=r"batch index \(1,\)"):
        neural_expm.expm(batch.clone().requires_grad_(), model=EXP, grad=grad, outside="raise")
    marked = neural_expm.expm(batch.clone().requires_grad_(), model=EXP, grad=grad, outside="nan")
    assert torch.isfinite(marked[0]).all()
    assert marked[1].isnan().all()
    trusted = neural_expm.expm(batch.clone().requires_grad_(), model=EXP, grad=grad, outside="trust")
    torch.testing.assert_close(trusted, neural_expm.load(EXP)(batch))


def test_a_matrix_without_a_sign_is_named():
    name = next(r.name for r in RECORDS if r.function == "sign")
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    with pytest.raises(UndefinedFunctionError):
        neural_expm.sign(turn, model=name)


def test_a_symmetric_matrix_inside_the_gap_is_outside():
    name = "sign-transformer-symmetric"
    _, report = neural_expm.sign(torch.diag(torch.tensor([1.0, -0.05])), model=name, return_report=True)
    assert report.code.item() == Reason.SPECTRUM


def test_ill_conditioned_eigenvectors_are_outside_the_general_sign():
    name = "sign-transformer-general"
    near = torch.tensor([[0.5, 40.0], [0.0, 0.6]])
    _, report = neural_expm.sign(near, model=name, return_report=True)
    assert report.code.item() == Reason.SPECTRUM


def test_explain_routes_without_computing():
    batch = torch.stack([0.5 * torch.eye(3), 50 * torch.eye(3)])
    report = neural_expm.explain("expm", batch, model=EXP)
    assert report.path == ["network", "exact"]


def test_rtol_takes_the_cheapest_network():
    """No encoder–decoder is cheaper than a few matrix products at n ≤ 8; one that were would be taken."""
    matrices = torch.eye(4).expand(3, 4, 4)
    _, report = neural_expm.expm(matrices, rtol=2e-2, return_report=True)
    assert report.checkpoint.startswith("expm-equivariant")
    record = neural_expm.list_models("expm")[[r.name for r in neural_expm.list_models("expm")].index(EXP)]
    assert surrogate.cheaper_surrogate("expm", matrices, 2e-2) is None
    cheap = dataclasses.replace(record, measured={**record.measured, "multiplications": {"4": 100}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surrogate, "list_models", lambda function: [record, cheap])
        assert surrogate.cheaper_surrogate("expm", matrices, 2e-2) is cheap
        assert surrogate.cheaper_surrogate("expm", matrices, 1e-4) is None, "its promise is not that good"
        assert surrogate.cheaper_surrogate("expm", matrices.to(torch.complex64), 2e-2) is None


def test_bad_choices_are_named():
    with pytest.raises(InputError, match="grad='surrogate'"):
        neural_expm.expm(torch.eye(3), grad="surrogate")
    with pytest.raises(UnknownModelError, match="computes expm"):
        neural_expm.sign(torch.eye(3), model=EXP)


def test_a_loaded_module_keeps_its_domain():
    batch = torch.stack([0.5 * torch.eye(3), 50 * torch.eye(3)])
    result, report = neural_expm.expm(batch, model=neural_expm.load(EXP), return_report=True)
    assert report.path == ["network", "exact"]
    assert torch.equal(result, neural_expm.expm(batch, model=EXP))


def test_a_module_made_by_hand_is_refused():
    network = neural_expm.load(EXP)
    with pytest.raises(InputError, match="does not know its domain"):
        neural_expm.expm(torch.eye(3), model=type(network).from_config(network.config))
