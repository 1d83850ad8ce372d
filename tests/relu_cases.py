"""Matrices that try to break the bounds of the constructed ReLU networks: random, extreme, searched."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from neural_expm.networks.relu_construction import ExpRecipe, SqrtRecipe
from neural_expm.networks.relu_executor import ConstructedReLUNet


def box_matrices(n: int, radius: float, count: int, seed: int) -> Tensor:
    """Members of ‖A‖_∞ ≤ radius: random, vertices, nilpotent, Toeplitz, and some without cancellation."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(count, n, n, dtype=torch.float64, generator=generator)
    sparse = gaussian * (torch.rand(count, n, n, generator=generator) < 0.4)
    nilpotent = gaussian.triu(1)
    diagonals = torch.randn(count, 2 * n - 1, dtype=torch.float64, generator=generator)
    row, column = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    toeplitz = diagonals[:, row - column + n - 1]
    families = torch.cat([gaussian, gaussian.abs(), sparse, nilpotent, toeplitz])
    norms = families.abs().sum(-1).amax(-1)[:, None, None]
    scaled = radius * families / norms.clamp_min(1e-300)
    shrunk = scaled * torch.rand(len(scaled), 1, 1, dtype=torch.float64, generator=generator)
    eye = torch.eye(n, dtype=torch.float64)
    shift = torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
    named = radius * torch.stack([eye, -eye, shift, shift.mT, torch.full_like(eye, 1 / n), 0 * eye])
    return torch.cat([scaled, shrunk, vertices(n, radius, count, generator), named])


def vertices(n: int, radius: float, count: int, generator: torch.Generator) -> Tensor:
    """Vertices ±radius·e_j in each row: all (2n)^n of them where they are few, else a sample."""
    if (2 * n) ** n <= count:
        choice = torch.tensor(list(itertools.product(range(2 * n), repeat=n)))
    else:
        choice = torch.randint(0, 2 * n, (count, n), generator=generator)
    signs = radius * (1 - 2 * (choice % 2)).double()
    return torch.zeros(len(choice), n, n, dtype=torch.float64).scatter(
        -1, (choice // 2)[..., None], signs[..., None]
    )


def spd_matrices(n: int, low: float, high: float, count: int, seed: int) -> Tensor:
    """Symmetric matrices with spectrum in [low, high]: inner, at the ends only, diagonal."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(3 * count, n, n, dtype=torch.float64, generator=generator))[0]
    basis[2 * count :] = torch.eye(n, dtype=torch.float64)
    position = torch.rand(3 * count, n, dtype=torch.float64, generator=generator)
    position[count : 2 * count] = position[count : 2 * count].round()
    return symmetric(basis, low * (high / low) ** position)


def symmetric(basis: Tensor, eigenvalues: Tensor) -> Tensor:
    """Q diag(λ) Qᵀ, exactly symmetric."""
    product = (basis * eigenvalues[..., None, :]) @ basis.mT
    return (product + product.mT) / 2


def square_root(A: Tensor) -> Tensor:
    """The principal square root by eigenvalues: good to rounding at the condition numbers used here."""
    eigenvalues, basis = torch.linalg.eigh(A)
    return symmetric(basis, eigenvalues.sqrt())


def exp_error(net: ConstructedReLUNet, A: Tensor) -> Tensor:
    """‖N(A) − e^A‖_∞ over e^radius: what `ExpRecipe.promise` bounds."""
    difference = net(A) - torch.linalg.matrix_exp(A)
    return difference.abs().sum(-1).amax(-1) / torch.tensor(net.recipe.radius, dtype=torch.float64).exp()


def sqrt_error(net: ConstructedReLUNet, A: Tensor, truth: Tensor | None = None) -> Tensor:
    """The larger of the relative 2-norm and Frobenius errors: what `SqrtRecipe.promise` bounds."""
    truth = square_root(A) if truth is None else truth
    difference = net(A) - truth
    return torch.maximum(
        torch.linalg.matrix_norm(difference, 2) / torch.linalg.matrix_norm(truth, 2),
        torch.linalg.matrix_norm(difference) / torch.linalg.matrix_norm(truth),
    )


def climb_exp(net: ConstructedReLUNet, start: Tensor, steps: int) -> Tensor:
    """Errors along a gradient ascent, from the worst of `start`, kept in the box by rescaling rows."""
    recipe: ExpRecipe = net.recipe
    A = start[exp_error(net, start).argsort(descending=True)[:16]].clone()
    seen = []
    for step in range(steps):
        A.requires_grad_()
        error = exp_error(net, A)
        seen.append(error.detach())
        (gradient,) = torch.autograd.grad(error.sum(), A)
        length = 0.1 * recipe.radius * 0.95**step
        move = length * gradient / gradient.abs().amax((-2, -1), keepdim=True).clamp_min(1e-300)
        A = (A + move).detach()
        A = A * (recipe.radius / A.abs().sum(-1, keepdim=True)).clamp_max(1.0)
    return torch.cat(seen)


def climb_sqrt(net: ConstructedReLUNet, steps: int, seed: int) -> Tensor:
    """Errors along a gradient ascent over eigenvectors (Cayley transform) and eigenvalues."""
    recipe: SqrtRecipe = net.recipe
    generator = torch.Generator().manual_seed(seed)
    n = recipe.n
    angle = torch.randn(16, n, n, dtype=torch.float64, generator=generator, requires_grad=True)
    phase = torch.randn(16, n, dtype=torch.float64, generator=generator, requires_grad=True)
    optimizer = torch.optim.Adam([angle, phase], lr=0.05)
    seen = []
    for _ in range(steps):
        skew = angle - angle.mT
        basis = torch.linalg.solve(
            torch.eye(n, dtype=torch.float64) + skew, torch.eye(n, dtype=torch.float64) - skew
        )
        eigenvalues = recipe.low + (recipe.high - recipe.low) * phase.sin().square()
        error = sqrt_error(net, symmetric(basis, eigenvalues), symmetric(basis, eigenvalues.sqrt()))
        seen.append(error.detach())
        optimizer.zero_grad()
        (-error.log().sum()).backward()
        optimizer.step()
    return torch.cat(seen)
