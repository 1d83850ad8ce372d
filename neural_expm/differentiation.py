"""Autograd for any matrix function that can compute its value and its Fréchet derivative.

For a primary matrix function with real Taylor coefficients the Fréchet derivative L(A, E) is both:

* forward mode: d f(A)[E] = L(A, E);
* reverse mode: the adjoint of E ↦ L(A, E) is G ↦ L(Aᴴ, G) (Higham, *Functions of Matrices*, section 3.2).

So one kernel serves both, and no 2n × 2n matrix appears.  Derivatives of L itself come from
f([[A, E], [0, A]]) = [[f(A), L(A, E)], [0, f(A)]] (Mathias 1996), so the pair of functions below is closed under
differentiation: backward, double backward, forward mode, torch.func transforms and vmap, nested in any order.

The object that they carry, an :class:`Evaluator`, sees only plain tensors: under a transform torch calls ``forward``
at the innermost level.  That is what lets the routing look at norms.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import InputError
from .kernels.reference import adjoint_of_frechet, balance, block_triangular


class Evaluator(Protocol):
    """A matrix function on batches of shape (*, n, n)."""

    def value(self, A: Tensor) -> Tensor:
        """f(A)."""

    def frechet(self, A: Tensor, E: Tensor) -> Tensor:
        """L(A, E)."""

    def renewed(self) -> Evaluator:
        """The same function without anything remembered about a particular A."""


def _front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def matrix_function(A: Tensor, evaluator: Evaluator) -> Tensor:
    """f(A) with derivatives of every order."""
    return (_TransformedValue if under_transform() else _Value).apply(A, evaluator)


def frechet(A: Tensor, E: Tensor, evaluator: Evaluator) -> Tensor:
    """L(A, E) with derivatives of every order."""
    if torch._C._functorch.is_legacy_batchedtensor(E):
        return _frechet_of_batched(A, E, evaluator)
    if not (torch.is_grad_enabled() or under_transform() or torch.autograd.forward_ad._current_level >= 0):
        return evaluator.frechet(A, E)  # as in most backward passes: nobody will ask for its derivative
    return (_TransformedFrechet if under_transform() else _Frechet).apply(A, E, evaluator)


def _frechet_of_batched(A: Tensor, E: Tensor, evaluator: Evaluator) -> Tensor:
    """L(A, E) for several cotangents at once, as ``torch.autograd.grad(…, is_grads_batched=True)`` hands them over.

    So do ``torch.autograd.functional.jacobian(…, vectorize=True)`` and ``hessian``: by torch's older vmap, which has no
    rule for what writes into memory of its own.
    """
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    directions = torch._remove_batch_dim(E, level, 1, 0)
    if torch._C._functorch.is_legacy_batchedtensor(directions):
        raise InputError(
            "is_grads_batched=True within itself is not supported; use torch.func.vmap and torch.func.vjp"
        )
    points = torch._remove_batch_dim(A, level, directions.shape[0], 0)
    return torch._add_batch_dim(frechet(points, directions, evaluator.renewed()), 0, level)


def under_transform() -> bool:
    """Whether a torch.func transform is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None


# Each rule comes twice: as a plain autograd function, and in the form that torch.func asks for, which costs tens of
# microseconds a call, more than a small matrix.


class _ValueRules(torch.autograd.Function):
    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None]:
        (A,) = ctx.saved_tensors
        return frechet(A.mH, G, ctx.evaluator), None

    @staticmethod
    def jvp(ctx: Any, E: Tensor, _: None) -> Tensor:
        (A,) = ctx.saved_tensors
        return frechet(A, E, ctx.evaluator)


class _Value(_ValueRules):
    @staticmethod
    def forward(ctx: Any, A: Tensor, evaluator: Evaluator) -> Tensor:
        ctx.evaluator = evaluator
        ctx.save_for_backward(A)
        if (
            torch.autograd.forward_ad._current_level >= 0
        ):  # else nobody asks for it, and it takes a microsecond
            ctx.save_for_forward(A)
        return evaluator.value(A)


class _TransformedValue(_ValueRules):
    @staticmethod
    def forward(A: Tensor, evaluator: Evaluator) -> Tensor:
        return evaluator.value(A)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Evaluator], output: Tensor) -> None:
        A, ctx.evaluator = inputs
        ctx.save_for_backward(A)
        ctx.save_for_forward(A)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, None], A: Tensor, evaluator: Evaluator
    ) -> tuple[Tensor, int]:
        return matrix_function(_front(A, in_dims[0], info.batch_size), evaluator.renewed()), 0


# In the rule of a forward mode torch drops the tangents that outer ones have given to what its operations read, but not
# to what an autograd function reads: without the two that follow a derivative nested three deep would be zero.


class _Block(torch.autograd.Function):
    """[[A, cE], [0, A]], linear in both."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, E: Tensor, factor: Tensor) -> Tensor:
        return block_triangular(A, E * factor, A)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])
        ctx.save_for_forward(inputs[2])

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, Tensor, None]:
        (factor,), n = ctx.saved_tensors, G.shape[-1] // 2
        return G[..., :n, :n] + G[..., n:, n:], G[..., :n, n:] * factor, None

    @staticmethod
    def jvp(ctx: Any, dA: Tensor, dE: Tensor, _: None) -> Tensor:
        return _Block.apply(dA, dE, ctx.saved_tensors[0])


class _Corner(torch.autograd.Function):
    """The upper right block of M over c."""

    generate_vmap_rule = True

    @staticmethod
    def forward(M: Tensor, factor: Tensor) -> Tensor:
        n = M.shape[-1] // 2
        return M[..., :n, n:] / factor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None]:
        zero = torch.zeros_like(G)
        return block_triangular(zero, G / ctx.saved_tensors[0], zero), None

    @staticmethod
    def jvp(ctx: Any, dM: Tensor, _: None) -> Tensor:
        return _Corner.apply(dM, ctx.saved_tensors[0])


class _FrechetRules(torch.autograd.Function):
    @staticmethod
    def backward(ctx: Any, H: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        A, E = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, frechet(A.mH, H, ctx.evaluator), None
        evaluator = ctx.evaluator.renewed()
        return *adjoint_of_frechet(A, E, H, lambda M, B: frechet(M, B, evaluator)), None

    @staticmethod
    def jvp(ctx: Any, dA: Tensor | None, dE: Tensor | None, _: None) -> Tensor:
        A, E = ctx.saved_tensors
        dA = torch.zeros_like(A) if dA is None else dA
        dE = torch.zeros_like(E) if dE is None else dE
        factor = balance(A, E)
        M, dM = _Block.apply(A, E, factor), _Block.apply(dA, dE, factor)
        return _Corner.apply(frechet(M, dM, ctx.evaluator.renewed()), factor)


class _Frechet(_FrechetRules):
    @staticmethod
    def forward(ctx: Any, A: Tensor, E: Tensor, evaluator: Evaluator) -> Tensor:
        _TransformedFrechet.setup_context(ctx, (A, E, evaluator), E)
        return evaluator.frechet(A, E)


class _TransformedFrechet(_FrechetRules):
    @staticmethod
    def forward(A: Tensor, E: Tensor, evaluator: Evaluator) -> Tensor:
        return evaluator.frechet(A, E)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Evaluator], output: Tensor) -> None:
        A, E, ctx.evaluator = inputs
        ctx.save_for_backward(A, E)
        ctx.save_for_forward(A, E)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None, None], A: Tensor, E: Tensor, evaluator: Evaluator
    ) -> tuple[Tensor, int]:
        A, E = (_front(X, dim, info.batch_size) for X, dim in zip((A, E), in_dims[:2], strict=True))
        return frechet(A, E, evaluator.renewed()), 0
