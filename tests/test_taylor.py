"""Evaluation schemes that match the Taylor series of exp."""

import math

import numpy as np
import pytest
import torch

from neural_expm.training import minimax, taylor


def _polynomial(theta, products):
    """Coefficients of p from fixed-point weights, exactly in integers, to float64."""
    errors = minimax._fixed_error_coefficients(theta, products, 2**products)
    series = [1 / math.factorial(k) for k in range(2**products + 1)]
    return np.convolve(errors, series)[: 2**products + 1] + series


@pytest.mark.parametrize(("products", "order"), [(3, 8), (4, 15), (5, 22)])
def test_coefficient_errors_and_derivative(products, order):
    generator = torch.Generator().manual_seed(products)
    theta, change = 0.5 * torch.randn(2, 1, minimax.count(products), dtype=torch.float64, generator=generator)
    residual, jacobian = taylor.coefficient_errors(theta, products, order)
    expected = _polynomial(minimax.to_fixed(theta[0]), products)[: order + 1]
    factorial = np.array([float(math.factorial(k)) for k in range(order + 1)])
    scale = 1 + np.abs(expected * factorial).max()
    assert np.abs(residual[0].numpy() - (expected * factorial - 1)).max() < 1e-12 * scale
    above, below = (taylor.coefficient_errors(theta + s * 1e-6 * change, products, order)[0] for s in (1, -1))
    slope = (jacobian @ change[:, :, None])[:, :, 0]
    assert ((above - below) / 2e-6 - slope).abs().max() < 1e-6 * (1 + slope.abs().max())


def test_four_products_match_fifteen_orders():
    theta = next(taylor.random_schemes(4, 15, seed=0))
    p = _polynomial(minimax.to_fixed(theta), 4)
    for k in range(16):
        assert abs(p[k] * math.factorial(k) - 1) < 1e-7


@pytest.fixture(scope="module")
def four():
    return taylor.start(4)


def test_start_reaches_float64_on_a_disc(four):
    theta, radius = four
    _, epsilon = minimax.polish(theta, 4, radius, 1)
    assert epsilon <= 1.1e-16
    assert taylor.amplification(theta, 4, radius) <= taylor.LARGEST_AMPLIFICATION


def test_lift_squares_without_loss(four):
    theta, _ = four
    lifted = taylor.lift_fixed(theta, 4)
    error = minimax._fixed_error_coefficients(theta, 4, 40) * 0.5 ** np.arange(41)
    expected = 2 * error + np.convolve(error, error)[:41]
    actual = minimax._fixed_error_coefficients(lifted, 5, 40)
    # Far below float64's 2e-16 of the coefficients of p; what is left is the rounding of this test's own sum.
    assert np.abs(actual - expected).max() < 1e-30
