"""Bad and odd input: the error or the result that a torch user would expect."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import torch

import neural_expm
from neural_expm import (
    InputError,
    InputTypeError,
    NeuralExpmError,
    OutsideDomainError,
    UndefinedFunctionError,
    UnknownModelError,
)

FUNCTIONS = [neural_expm.expm, neural_expm.sign, neural_expm.sqrtm]
each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


@each_function
@pytest.mark.parametrize(
    ("bad", "error", "builtin", "words"),
    [
        (torch.zeros(2, 3), InputError, ValueError, r"square matrices of shape .* got shape \(2, 3\)"),
        (torch.zeros(3), InputError, ValueError, r"got shape \(3,\)"),
        (torch.tensor(1.0), InputError, ValueError, r"got shape \(\)"),
        (torch.eye(2, dtype=torch.int64), InputTypeError, TypeError, r"torch.int64.*A.to\(torch.float64\)"),
        (torch.eye(2, dtype=torch.bool), InputTypeError, TypeError, "torch.bool"),
        ([[1.0, 0.0], [0.0, 1.0]], InputTypeError, TypeError, "got list; convert with torch.as_tensor"),
        (np.eye(2), InputTypeError, TypeError, "ndarray"),
        (None, InputTypeError, TypeError, "NoneType"),
        (torch.eye(2).to_sparse(), InputTypeError, TypeError, r"to_dense\(\)"),
    ],
    ids=["not square", "vector", "scalar", "integer", "bool", "list", "numpy", "None", "sparse"],
)
def test_what_is_not_a_batch_of_matrices(function, bad, error, builtin, words):
    with pytest.raises(error, match=words) as caught:
        function(bad)
    assert isinstance(caught.value, builtin)
    assert isinstance(caught.value, NeuralExpmError)


@each_function
def test_empty_and_tiny(function):
    assert function(torch.zeros(0, 3, 3)).shape == (0, 3, 3)
    assert function(torch.zeros(4, 0, 0)).shape == (4, 0, 0)
    assert function(torch.zeros(0, 0)).shape == (0, 0)
    one = torch.tensor([[[4.0]], [[0.25]]], dtype=torch.float64)
    expected = {"expm": one.exp(), "sign": torch.ones_like(one), "sqrtm": one.sqrt()}[function.__name__]
    assert torch.allclose(function(one), expected, rtol=1e-15, atol=0)
    empty = torch.zeros(0, 3, 3, requires_grad=True)
    function(empty).sum().backward()
    assert empty.grad.shape == (0, 3, 3)
    assert "0 matrices" in str(function(torch.zeros(0, 2, 2), return_report=True)[1])


@each_function
def test_strides_and_views(function):
    base = torch.eye(4, dtype=torch.float64) + 0.1 * torch.randn(
        3, 5, 4, 4, dtype=torch.float64, generator=cases.generator()
    )
    expected = function(base)
    assert torch.allclose(function(base.mT), expected.mT, atol=1e-13)
    assert torch.allclose(function(base.transpose(0, 1)), expected.transpose(0, 1), atol=1e-13)
    assert torch.allclose(function(base[::2, 1:4]), expected[::2, 1:4], atol=1e-13)
    expanded = base[:1, :1].expand(3, 5, 4, 4)
    assert torch.allclose(function(expanded), expected[:1, :1].expand(3, 5, 4, 4), atol=1e-13)
    # a gradient through a non-contiguous view of a leaf
    leaf = base.permute(2, 3, 0, 1).clone().requires_grad_()
    function(leaf.permute(2, 3, 0, 1)).sum().backward()
    other = base.clone().requires_grad_()
    function(other).sum().backward()
    assert torch.allclose(leaf.grad.permute(2, 3, 0, 1), other.grad, atol=1e-12)
    before = base.clone()
    function(base)
    assert torch.equal(base, before)


@each_function
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_matrix_leaves_its_neighbours_untouched(function, value):
    A = torch.eye(3, dtype=torch.float64) + 0.1 * torch.randn(
        6, 3, 3, dtype=torch.float64, generator=cases.generator()
    )
    expected = function(A)
    A[2, 0, 1] = value
    A.requires_grad_()
    result, report = function(A, return_report=True)
    keep = [0, 1, 3, 4, 5]
    assert torch.allclose(result[keep], expected[keep], atol=1e-14)
    assert bool(result[2].isnan().all())
    assert report.inside.tolist() == [True, True, False, True, True, True]
    assert "NaN or infinite" in report.reason[2]
    (gradient,) = torch.autograd.grad(result[keep].sum(), A)
    assert bool(torch.isfinite(gradient[keep]).all())
    with pytest.raises(OutsideDomainError, match=r"batch index \(2,\).*NaN or infinite"):
        function(A, outside="raise")
    assert bool(function(A, outside="nan")[2].isnan().all())


def test_huge_norms():
    huge = torch.tensor([[0.0, 1e30], [-1e30, 0.0]], dtype=torch.float64)
    report = neural_expm.explain("expm", huge)
    assert report.path == "exact"
    assert "norm" in report.reason
    assert torch.equal(
        neural_expm.expm(-1e30 * torch.eye(2, dtype=torch.float64)), torch.zeros(2, 2, dtype=torch.float64)
    )
    overflow = 1e30 * torch.eye(2, dtype=torch.float64)
    assert torch.equal(neural_expm.expm(overflow).isfinite(), torch.linalg.matrix_exp(overflow).isfinite())
    big = 1e30 * torch.diag(torch.tensor([4.0, 9.0], dtype=torch.float64))
    assert torch.allclose(
        neural_expm.sqrtm(big), 1e15 * torch.diag(torch.tensor([2.0, 3.0], dtype=torch.float64))
    )
    assert torch.allclose(neural_expm.sign(-big), -torch.eye(2, dtype=torch.float64))


def test_outside_is_per_matrix():
    inside = 0.1 * torch.eye(2, dtype=torch.float64)
    A = torch.stack([inside, 1e4 * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)])
    result, report = neural_expm.expm(A, return_report=True)
    assert report.path == ["network", "exact"]
    assert torch.allclose(result, torch.linalg.matrix_exp(A), atol=1e-10)
    with pytest.raises(OutsideDomainError, match=r"1 of 2 .* batch index \(1,\).*outside='exact'"):
        neural_expm.expm(A, outside="raise")
    marked = neural_expm.expm(A, outside="nan")
    assert bool(torch.isfinite(marked[0]).all())
    assert bool(marked[1].isnan().all())
    with pytest.raises(InputError, match="outside='ignore'"):
        neural_expm.expm(A, outside="ignore")


def test_functions_that_do_not_exist_say_where():
    rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    A = torch.eye(2, dtype=torch.float64).repeat(2, 3, 1, 1)
    A[1, 2] = rotation
    with pytest.raises(UndefinedFunctionError, match=r"batch index \(1, 2\).*imaginary axis.*outside='nan'"):
        neural_expm.sign(A)
    assert bool(neural_expm.sign(A, outside="nan")[1, 2].isnan().all())
    with pytest.raises(UndefinedFunctionError, match="imaginary axis"):
        neural_expm.sign(torch.zeros(2, 2))
    negative = torch.diag(torch.tensor([1.0, -2.0], dtype=torch.float64))
    negative[0, 1] = 0.5  # not symmetric: the Schur path
    A[1, 2] = negative
    with pytest.raises(UndefinedFunctionError, match=r"batch index \(1, 2\).*negative real axis"):
        neural_expm.sqrtm(A)
    with pytest.raises(UndefinedFunctionError, match="negative real axis"):
        neural_expm.sqrtm(-torch.eye(2))


def test_options():
    A = torch.eye(2)
    with pytest.raises(UnknownModelError, match=r"'expm-nonsense'.*expm-equivariant-float32"):
        neural_expm.expm(A, model="expm-nonsense")
    with pytest.raises(UnknownModelError, match="computes sign"):
        neural_expm.expm(A, model="sign-equivariant")
    for rtol in (0.0, -1.0, 2.0, "tight"):
        with pytest.raises(InputError, match="rtol"):
            neural_expm.expm(A, rtol=rtol)
    with pytest.raises(InputError, match="below what any network promises"):
        neural_expm.expm(A, rtol=1e-18)
    with pytest.raises(UnknownModelError, match="logm"):
        neural_expm.list_models("logm")


def test_report_and_explain_agree_and_can_be_read():
    A = cases.ginibre(3, 14).reshape(2, 7, 3, 3)
    _, report = neural_expm.expm(A, return_report=True)
    planned = neural_expm.explain("expm", A)
    for key in ("inside", "bound", "products", "squarings", "code"):
        assert getattr(report, key).shape == (2, 7)
        assert torch.equal(getattr(report, key), getattr(planned, key))
    text = str(report)
    assert "14 matrices, 14 by expm-equivariant-float64 (certified bound)" in text
    assert "2 more" in text
    single = neural_expm.explain("expm", A[0, 0])
    assert single.path == "network"
    assert single.inside.shape == ()
    assert bool((report.bound > 0).all())
    assert bool((report.bound < 1e-14).all())


def test_rtol_and_model_exclude_each_other():
    for model in ("expm-relu-n4-10k", neural_expm.load("expm-equivariant")):
        with pytest.raises(
            neural_expm.InputError, match=r"rtol=0\.01 chooses a network, and model= names one"
        ):
            neural_expm.expm(torch.eye(4), rtol=1e-2, model=model)


def test_what_is_trusted_is_promised_nothing():
    A = 100 * cases.ginibre(4, 5)
    report = neural_expm.expm(A, outside="trust", return_report=True)[1]
    assert report.bound_kind == "unchecked"
    assert bool(report.bound.isnan().all())
    assert set(report.reason) == {"trusted to be inside the domain"}
    assert "unchecked" in str(report)


def test_what_a_graph_cannot_hold_is_said_in_plain_words():
    A = torch.eye(3)[None]
    torch._dynamo.reset()
    with pytest.raises(Exception, match="pass outside='trust' for the deepest network alone"):
        torch.compile(lambda X: neural_expm.expm(X), fullgraph=True, backend="eager")(A)
    broken = torch.compile(lambda X: neural_expm.expm(X) + 1, backend="eager")
    torch.testing.assert_close(broken(A), neural_expm.expm(A) + 1)

    class Plain(torch.nn.Module):
        def forward(self, X):
            return neural_expm.expm(X)

    with pytest.raises(neural_expm.InputError, match="pass outside='trust'"):
        torch.export.export(Plain(), (A,))


def test_names_are_found_by_family_and_suggested_when_mistyped():
    from neural_expm.networks.exponential import EquivariantExponential

    network = EquivariantExponential.from_pretrained("expm-equivariant")
    assert network.checkpoint.name == "expm-equivariant-float32"
    with pytest.raises(neural_expm.UnknownModelError, match="did you mean 'expm-relu-n4-10k'"):
        neural_expm.load("expm-relu-n4-10")
    with pytest.raises(
        neural_expm.InputError, match=r"no matrix function 'foo'; expected one of 'expm', 'sign', 'sqrtm'"
    ):
        neural_expm.explain("foo", torch.eye(2))
    with pytest.raises(neural_expm.InputTypeError, match="on the meta device"):
        neural_expm.expm(torch.empty(2, 3, 3, device="meta"))
    with pytest.raises(neural_expm.InputTypeError, match=r"A.to\(torch.complex64\)"):
        neural_expm.expm(torch.zeros(2, 2, dtype=torch.complex32))


@pytest.mark.parametrize("wrong", [{"n": (8, 2)}, {"radius": -1.0}, {"norm": "fro"}, {"structure": "round"}])
def test_a_domain_that_cannot_be_is_refused(wrong):
    with pytest.raises(neural_expm.InputError, match=str(next(iter(wrong)))):
        neural_expm.domain.Domain(**wrong)
    with pytest.raises(neural_expm.errors.ManifestError, match="checkpoint 'mine'"):
        neural_expm.domain.Domain.from_json(wrong, "mine")


def test_a_shipped_checkpoint_has_no_revisions():
    with pytest.raises(neural_expm.InputError, match="revision='x' is for a Hub id"):
        neural_expm.load("expm-equivariant", revision="x")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("outside", ["exact", "trust"])
def test_a_recorder_of_one_input_is_refused(outside):
    """It would play what suits the norms of that input to every other."""
    with pytest.raises(neural_expm.InputError, match=r"torch\.export"):
        torch.jit.trace(lambda A: neural_expm.expm(A, outside=outside), torch.zeros(2, 3, 3))
