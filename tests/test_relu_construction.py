"""The constructed ReLU networks keep their proofs: bounds, sizes, choices, and plain affine–ReLU form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from relu_cases import box_matrices, climb_exp, climb_sqrt, exp_error, spd_matrices, sqrt_error

from neural_expm.errors import CheckpointError, InputError
from neural_expm.networks.relu import ReLUNet
from neural_expm.networks.relu_blocks import Builder, bounded, matrix_products, product, square
from neural_expm.networks.relu_choice import choose_exp, choose_sqrt
from neural_expm.networks.relu_construction import ExpRecipe, SqrtRecipe
from neural_expm.networks.relu_executor import ConstructedReLUNet

# The bound may exceed the worst error found by this factor: the meaning of "not vacuous".
VACUOUS = 100.0
# Rounding of a float64 run, on top of a proof about exact arithmetic; far below every bound tested.
ROUNDING = 1e-13

EXP_RECIPES = [
    ExpRecipe(n=2, radius=1.0, degree=2, squarings=3, sawteeth=5),
    ExpRecipe(n=3, radius=1.0, degree=6, squarings=3, sawteeth=8),
    ExpRecipe(n=3, radius=2.0, degree=6, squarings=4, sawteeth=16),
    ExpRecipe(n=2, radius=3.0, degree=16, squarings=1, sawteeth=9),
    ExpRecipe(n=4, radius=1.5, degree=9, squarings=0, sawteeth=7),
    ExpRecipe(n=3, radius=2.0, degree=12, squarings=2, sawteeth=10),
]
SQRT_RECIPES = [
    SqrtRecipe(n=2, low=0.1, high=1.0, steps=1, sawteeth=6),
    SqrtRecipe(n=3, low=0.5, high=4.0, steps=2, sawteeth=10),
    SqrtRecipe(n=3, low=0.1, high=1.0, steps=4, sawteeth=12),
]


def run(layers, x):
    """Affine, ReLU, …, affine in numpy on the columns of x: independent of the executor."""
    for index, (weights, bias) in enumerate(layers):
        x = weights @ x + bias[:, None]
        x = np.maximum(x, 0.0) if index < len(layers) - 1 else x
    return x


def proven_exp(recipe):
    """Largest error over random, extreme and searched matrices, as a fraction of e^radius."""
    net = ConstructedReLUNet(recipe)
    matrices = box_matrices(recipe.n, recipe.radius, 300, seed=recipe.n)
    return max(exp_error(net, matrices).max().item(), climb_exp(net, matrices, steps=15).max().item())


def proven_sqrt(recipe):
    net = ConstructedReLUNet(recipe)
    matrices = spd_matrices(recipe.n, recipe.low, recipe.high, 500, seed=recipe.n)
    return max(sqrt_error(net, matrices).max().item(), climb_sqrt(net, steps=20, seed=1).max().item())


@pytest.mark.parametrize("sawteeth", [1, 3, 8])
def test_square_errs_from_above_and_its_bound_is_attained(sawteeth):
    builder = Builder(1)
    layers = builder.finish(square(builder, bounded(builder.input(), 3.0), sawteeth))
    x = np.linspace(-3, 3, 2 ** (sawteeth + 2) + 1)[None]  # nodes and midpoints of the interpolant among them
    excess = run(layers, x) - x**2
    bound = 9 * 4.0 ** -(sawteeth + 1)
    assert excess.min() >= -ROUNDING
    assert excess.max() == pytest.approx(bound, abs=ROUNDING)


def test_product_stays_within_its_bound_and_annihilates_zero():
    builder = Builder(2)
    x, y = bounded(builder.input()[:1], 2.0), bounded(builder.input()[1:], 0.5)
    layers = builder.finish(product(builder, x, y, 4))
    grid = np.stack(np.meshgrid(np.linspace(-2, 2, 129), np.linspace(-0.5, 0.5, 129))).reshape(2, -1)
    error = np.abs(run(layers, grid) - grid[:1] * grid[1:])
    bound = 2.0 * 0.5 * 4.0**-5
    assert bound / 2 < error.max() <= bound + ROUNDING
    zero = np.array([[0.0, 0.0, 1.7], [0.3, -0.5, 0.0]])
    assert np.all(run(layers, zero) == 0.0)


def test_matrix_product_stays_within_its_bound():
    n, sawteeth = 3, 5
    builder = Builder(2 * n * n)
    x, y = bounded(builder.input()[: n * n], 1.5), bounded(builder.input()[n * n :], 4.0)
    (result,), _ = matrix_products(builder, n, [(x, y)], sawteeth)
    layers = builder.finish(result)
    X, Y = box_matrices(n, 1.5, 200, seed=1).numpy(), box_matrices(n, 4.0, 200, seed=2).numpy()
    Y = Y[np.random.default_rng(3).permutation(len(Y))]
    columns = np.concatenate([X.reshape(len(X), -1), Y.reshape(len(Y), -1)], 1).T
    error = np.abs(run(layers, columns).T.reshape(X.shape) - X @ Y).sum(-1).max()
    bound = n * n * 4.0 ** -(sawteeth + 1) * 1.5 * 4.0
    assert bound / VACUOUS < error <= bound


@pytest.mark.parametrize("recipe", EXP_RECIPES, ids=str)
def test_exp_error_never_exceeds_the_bound_and_the_bound_is_not_vacuous(recipe):
    worst, bound = proven_exp(recipe), recipe.promise()
    assert bound / VACUOUS <= worst <= bound + ROUNDING


@pytest.mark.parametrize("recipe", SQRT_RECIPES, ids=str)
def test_sqrt_error_never_exceeds_the_bound_and_the_bound_is_not_vacuous(recipe):
    worst, bound = proven_sqrt(recipe), recipe.promise()
    assert bound / VACUOUS <= worst <= bound + ROUNDING


@pytest.mark.parametrize(("n", "radius", "epsilon"), [(3, 2.0, 1e-6), (5, 15.0, 5e-2)])
def test_exp_keeps_its_published_figures(n, radius, epsilon):
    recipe = choose_exp(n, radius, epsilon)
    assert recipe.promise() <= epsilon
    assert recipe.size().width <= 6 * n**3 + 4 * n**2
    net = ConstructedReLUNet(recipe)
    assert recipe.promise() / VACUOUS <= exp_error(net, box_matrices(n, radius, 100, seed=5)).max() <= epsilon


@pytest.mark.parametrize("n", [2, 3, 4])
def test_sqrt_keeps_its_published_figures(n):
    recipe = choose_sqrt(n, low=0.1, high=1.0, epsilon=1e-3)
    assert recipe.promise() <= 1e-3
    assert recipe.promise() / VACUOUS <= proven_sqrt(recipe) <= recipe.promise()


@pytest.mark.parametrize(
    ("recipe", "absolute"), [(EXP_RECIPES[1], 6.6e-4), (EXP_RECIPES[2], 6.9e-8)], ids=str
)
def test_exp_bound_agrees_with_the_closed_formula(recipe, absolute):
    import mpmath

    with mpmath.workdps(40):
        delta = mpmath.mpf(recipe.n**2) / mpmath.mpf(4) ** (recipe.sawteeth + 1)
        r, count = mpmath.mpf(recipe.radius) / 2**recipe.squarings, 2**recipe.squarings

        def degree_six(inflation):
            x2 = inflation * r**2
            x3 = inflation * x2 * r
            return 1 + r + x2 / 2 + inflation * x3 * (mpmath.mpf(1) / 6 + r / 24 + x2 / 120 + x3 / 720)

        plain = degree_six(1)
        e0 = degree_six(1 + delta) - plain + mpmath.exp(r) - plain
        expected = (1 + delta) ** (count - 1) * (mpmath.exp(r) + e0) ** count - mpmath.exp(recipe.radius)
    assert recipe.bound().absolute == pytest.approx(float(expected), rel=1e-12)
    assert recipe.bound().absolute == pytest.approx(absolute, rel=0.02)


def test_relative_exp_bound_covers_the_error_relative_to_the_exponential():
    recipe = EXP_RECIPES[1]
    A = box_matrices(3, recipe.radius, 300, seed=7)
    difference, truth = ConstructedReLUNet(recipe)(A) - torch.linalg.matrix_exp(A), torch.linalg.matrix_exp(A)
    for order in ("fro", math.inf):
        relative = torch.linalg.matrix_norm(difference, order) / torch.linalg.matrix_norm(truth, order)
        assert relative.max() <= recipe.bound().relative


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("degree", [2, 4, 6, 9, 12, 16])
@pytest.mark.parametrize("squarings", [0, 1, 3])
def test_exp_size_is_what_the_formula_says(n, degree, squarings):
    recipe = ExpRecipe(n, 2.0, degree, squarings, sawteeth=3)
    check_size(recipe)
    products = {2: 1, 4: 2, 6: 3, 9: 4, 12: 5, 16: 6}[degree]
    assert recipe.size().depth == (products + squarings) * (3 + 2) - 1
    assert recipe.size().width <= 6 * n**3 + 4 * n**2


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_sqrt_size_is_what_the_formula_says(n, steps):
    recipe = SqrtRecipe(n, 0.1, 1.0, steps, sawteeth=4)
    check_size(recipe)
    assert recipe.size().depth == (2 * steps - 1) * (4 + 2) - 1
    assert recipe.size().width <= 8 * n**3 + 2 * n**2


def check_size(recipe):
    built = [(len(bias), weights.nnz, np.count_nonzero(bias)) for weights, bias in recipe.layers()]
    assert built == [(layer.neurons, layer.weights, layer.biases) for layer in recipe.size().layers]


def test_dense_network_is_plain_linear_and_relu_and_computes_the_same():
    recipe = ExpRecipe(2, 1.0, 4, 1, 6)
    net = ConstructedReLUNet(recipe)
    dense = net.to_dense()
    assert {type(module) for module in dense} == {torch.nn.Linear, torch.nn.ReLU}
    assert sum(p.numel() for p in dense.parameters()) == recipe.size().dense_parameters
    A = box_matrices(2, 1.0, 50, seed=0)
    assert torch.allclose(dense(A.flatten(-2)).reshape(A.shape), net(A), rtol=0, atol=ROUNDING)


def test_depth_grows_with_the_logarithm_of_one_over_epsilon():
    depths = [choose_exp(3, 2.0, epsilon=10.0**-k).size().depth for k in range(1, 11)]
    assert all(depth <= 16 * (k + 1) for k, depth in enumerate(depths, start=1))


def test_chosen_recipe_meets_epsilon_with_the_fewest_parameters():
    chosen = choose_exp(3, 1.0, epsilon=1e-4)
    everything = [
        ExpRecipe(3, 1.0, degree, s, m)
        for degree in (2, 4, 6, 9, 12, 16)
        for s in range(6)
        for m in range(1, 16)
    ]
    meeting = [r.size().parameters for r in everything if r.promise() + r.rounding() <= 1e-4]
    assert chosen.promise() <= 1e-4
    assert chosen.size().parameters == min(meeting)


def test_budget_buys_the_least_error():
    by_epsilon = choose_exp(3, 2.0, epsilon=1e-5)
    budget = by_epsilon.size().parameters
    by_budget = choose_exp(3, 2.0, max_parameters=budget)
    assert by_budget.size().parameters <= budget
    assert by_budget.promise() <= by_epsilon.promise()
    assert choose_sqrt(3, 0.1, max_parameters=40_000).promise() <= 1e-3


@pytest.mark.parametrize(
    "recipe",
    [ExpRecipe(3, 2.0, 6, 4, 16), ExpRecipe(8, 1.0, 6, 1, 14), ExpRecipe(2, 8.0, 6, 6, 16), SQRT_RECIPES[2]],
    ids=str,
)
def test_float32_rounding_stays_below_its_estimate(recipe):
    exp = isinstance(recipe, ExpRecipe)
    A = (
        box_matrices(recipe.n, recipe.radius, 25, 1)
        if exp
        else spd_matrices(recipe.n, recipe.low, 1.0, 200, 1)
    )
    A = A.float().double()  # the input itself is not to blame
    net = ConstructedReLUNet(recipe)
    wide = net(A)
    difference = net.float()(A.float()).double() - wide
    if exp:
        rounding = difference.abs().sum(-1).amax(-1).max() / math.exp(recipe.radius)
    else:
        rounding = (torch.linalg.matrix_norm(difference, 2) / torch.linalg.matrix_norm(wide, 2)).max()
    assert rounding <= recipe.rounding("float32")


def test_gradient_reaches_the_input():
    net = ConstructedReLUNet(ExpRecipe(2, 1.0, 6, 1, 14))
    A = torch.tensor([[0.13, 0.31], [-0.27, 0.22]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(A).sum(), A)
    (exact,) = torch.autograd.grad(torch.linalg.matrix_exp(A).sum(), A)
    # A slope of the sawtooth interpolant of x² is within 2^{−m} of 2x: 1e-3 is 10 times that at m = 14.
    assert torch.allclose(gradient, exact, atol=1e-3)


def test_batches_and_configuration_round_trip():
    net = ConstructedReLUNet(SqrtRecipe(2, 0.1, 1.0, 2, 8))
    again = ReLUNet.from_config(net.config)
    A = spd_matrices(2, 0.1, 1.0, 2, seed=0).reshape(2, 3, 2, 2)
    assert not net.state_dict()
    assert torch.equal(again(A), net(A))
    assert torch.equal(net(A)[1, 2], net(A[1, 2]))
    assert net(A[:0]).shape == (0, 3, 2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose_exp(3, 2.0, epsilon=1e-8, dtype="float32"), "use dtype='float64'"),
        (lambda: choose_exp(3, 2.0, epsilon=1e-18), "no dtype can"),
        (lambda: choose_sqrt(3, 0.1, epsilon=1e-9, dtype="float32"), "use dtype='float64'"),
        (lambda: choose_exp(3, 2.0, max_parameters=10), "the smallest network of this kind has"),
        (lambda: choose_exp(3, 2.0), "only one"),
        (lambda: choose_exp(3, 2.0, 1e-3, dtype="float8"), "float32"),
        (lambda: choose_exp(3, -1.0, 1e-3), "radius=-1.0"),
        (lambda: choose_exp(3, math.nan, 1e-3), "radius=nan"),
        (lambda: choose_exp(0, 1.0, 1e-3), "n=0"),
        (lambda: ExpRecipe(3, 1.0, 5, 1, 8), "degree=5"),
        (lambda: ExpRecipe(3, 1.0, 6, 1, 99), "sawteeth=99"),
        (lambda: SqrtRecipe(3, 1.0, 0.1, 2, 8), "must be below"),
        (lambda: ExpRecipe(64, 2.0, 6, 3, 9).layers(), "221,198,848 nonzero parameters"),
        (lambda: ConstructedReLUNet(ExpRecipe(8, 1.0, 4, 1, 4)).to_dense(), "dense, this network has"),
        (lambda: ConstructedReLUNet(EXP_RECIPES[0])(torch.zeros(3, 3)), r"\(\*, 2, 2\)"),
    ],
)
def test_bad_input_names_the_value_and_the_next_move(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "constructed", "function": "sign"},
        {"kind": "constructed", "function": "expm", "n": 3},
        {
            "kind": "constructed",
            "function": "expm",
            "n": 3,
            "radius": 1.0,
            "degree": 6,
            "squarings": -1,
            "sawteeth": 8,
        },
        {
            "kind": "constructed",
            "function": "expm",
            "n": 400,
            "radius": 1.0,
            "degree": 6,
            "squarings": 1,
            "sawteeth": 8,
        },
        {"kind": "cut"},
    ],
)
def test_absurd_configuration_is_a_checkpoint_error(config):
    with pytest.raises(CheckpointError):
        ReLUNet.from_config(config)
