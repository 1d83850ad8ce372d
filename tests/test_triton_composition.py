"""Fused sign and square root in Triton's interpreter, on the CPU, against torch and the eager network in double."""

from __future__ import annotations

import cases
import pytest
import torch
from triton_cases import DEVICE, QUIET, double, roundings, usage

import neural_expm
from neural_expm import exact
from neural_expm.kernels.triton import composition as kernels

# Relative Frobenius error in roundings over a batch of well-conditioned matrices.
ROUNDINGS = 60
SHAPES = [
    (1, 1, torch.float32),
    (2, 35, torch.float64),
    (3, 5, torch.complex64),
    (5, 9, torch.float32),
    (8, 1, torch.complex128),
    (17, 2, torch.float64),
]


def table(function: str, dtype: torch.dtype) -> kernels.Table:
    real = dtype.to_real()
    rules = neural_expm.load(f"{function}-equivariant", real).rules(real)
    return kernels.table(rules, function == "sqrtm", real, DEVICE)


def batch(function: str, count: int, n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Every other matrix Hermitian; norms from 1e-3 to 1e3, which neither function should notice."""
    generator = torch.Generator().manual_seed(n)
    A, E = torch.randn(2, count, n, n, dtype=dtype, generator=generator) / n
    spectrum = 0.4 + torch.rand(count, n, dtype=dtype.to_real(), generator=generator)
    if function == "sign":
        spectrum[:, ::2] *= -1
    A = 0.1 * A + torch.diag_embed(spectrum).to(dtype)
    A[::2] = (A[::2] + A[::2].mH) / 2
    return (A * torch.logspace(-3, 3, count, dtype=dtype.to_real())[:, None, None]).to(DEVICE), E.to(DEVICE)


@QUIET
@pytest.mark.parametrize("function", ["sign", "sqrtm"])
@pytest.mark.parametrize(("n", "count", "dtype"), SHAPES)
def test_values_and_derivatives(function, n, count, dtype):
    A, E = batch(function, count, n, dtype)
    value, derivative = torch.full_like(A, torch.nan), torch.full_like(A, torch.nan)
    notes = kernels.composition(A, table(function, dtype), value)
    # The adjoint's derivative, as the backward pass asks for it: transposed strides, lazily conjugated.
    kernels.composition_frechet(A.mH, E, table(function, dtype), derivative)
    expected, undefined = exact.VALUE[function](double(A))
    gradient = exact.FRECHET[function](double(A.mH), double(E))
    assert not bool(undefined.any())
    assert bool(notes.accepted.all())
    for i in range(count):  # one by one, since the norms differ
        assert roundings(value[i], expected[i]) < ROUNDINGS
        if (
            function == "sqrtm" or gradient[i].norm() > 1e-6 * E[i].norm()
        ):  # the derivative of sign may vanish
            assert roundings(derivative[i], gradient[i]) < 10 * ROUNDINGS
    assert notes.hermitian.tolist() == [i % 2 == 0 or (n == 1 and not dtype.is_complex) for i in range(count)]


@QUIET
@pytest.mark.parametrize("function", ["sign", "sqrtm"])
def test_the_certificate_is_that_of_the_eager_kernel(function):
    # Eigenvalues ever closer to the imaginary axis (sign) or the negative real one (sqrtm): the nearest leave the
    # half-disc of convergence, and a small residual would follow all the same.
    angle = torch.deg2rad(torch.arange(0.0, 90.0, 4.0, dtype=torch.float64)) * (
        2 if function == "sqrtm" else 1
    )
    a, b = torch.cos(angle), torch.sin(angle)
    A = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], -2).to(DEVICE)
    skewed = torch.tensor([[1.0, 3.0], [0.0, 1.0]], dtype=torch.float64, device=DEVICE)
    A = torch.cat([A, skewed @ A @ torch.linalg.inv(skewed)])
    value = torch.full_like(A, torch.nan)
    notes = kernels.composition(A, table(function, A.dtype), value)
    _, outcome = neural_expm.load(f"{function}-equivariant", A.dtype).run(A)
    inside = outcome.reason == 0
    assert inside.any()
    assert not inside.all()
    assert notes.accepted.tolist() == inside.tolist()
    assert notes.passes[inside].tolist() == outcome.passes[inside].tolist()
    torch.testing.assert_close(notes.scale, outcome.scale)
    expected, _ = exact.VALUE[function](A[inside])
    torch.testing.assert_close(value[inside], expected, rtol=1e-11, atol=1e-11)
    assert float(notes.residual[inside].max()) < 1e-12


@QUIET
def test_what_is_accepted_does_not_depend_on_the_unit_of_the_matrix():
    A = torch.cat([cases.with_roots(4, 3, condition)[0] for condition in (1e3, 1e8)]).to(DEVICE)
    for unit in (1e-6, 1.0, 1e6):
        notes = kernels.composition(unit * A, table("sqrtm", A.dtype), torch.empty_like(A))
        assert notes.accepted.tolist() == [True] * 3 + [False] * 3


@QUIET
@pytest.mark.parametrize("function", ["sign", "sqrtm"])
def test_bad_matrices_are_marked_and_leave_their_neighbours_alone(function):
    good, E = batch(function, 6, 3, torch.float32)
    A = good.clone()
    A[1, 0, 0], A[2, 1, 1], A[4] = torch.nan, torch.inf, 0.0
    outputs = []
    for X in (A, good):
        value, derivative = torch.full_like(X, torch.nan), torch.full_like(X, torch.nan)
        notes = kernels.composition(X, table(function, X.dtype), value)
        kernels.composition_frechet(X, E, table(function, X.dtype), derivative)
        outputs.append((value, derivative, notes.accepted))
    (value, derivative, accepted), (expected, expected_derivative, _) = outputs
    assert accepted.tolist() == [True, False, False, True, False, True]
    assert torch.equal(value[accepted], expected[accepted])
    assert torch.equal(derivative[accepted], expected_derivative[accepted])


def test_an_empty_batch_and_a_matrix_too_large():
    kernels.composition(
        torch.empty(0, 3, 3, device=DEVICE), table("sign", torch.float32), torch.empty(0, 3, 3)
    )
    with pytest.raises(ValueError, match="n = 33"):
        kernels.composition(torch.empty(1, 33, 33), table("sign", torch.float32), torch.empty(1, 33, 33))


# Bytes of spill that a thread may have: none where a GPU would be used most.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "n", "dtype", "dual", "spill"),
    [
        ("sign", 8, torch.float32, False, 0),
        ("sqrtm", 3, torch.float32, True, 0),
        ("sqrtm", 32, torch.complex128, True, 256),
    ],
)
def test_compiled_for_a_gpu_the_kernels_stay_in_registers(tmp_path, function, n, dtype, dual, spill):
    used = usage(tmp_path, function, n, dtype, dual)
    assert used["registers"] <= 255
    assert used["stack"] <= spill
    assert used["shared"] <= (96 if n == 32 else 48) * 1024
