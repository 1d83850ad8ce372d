"""The Triton kernels as operators of torch, so that a compiler keeps each as one node of its graph.

``neural_expm::expm``, ``::sign`` and ``::sqrtm`` return the value and notes on each matrix, and ``…_frechet`` the
derivative L(A, E); batches are of any shape.  A network reaches them as plain numbers: a graph needs no more to be
complete.  The backward pass of a value is L(Aᴴ, G), that of L the same on matrices of twice the size, so n ≤ 16 for
second derivatives; ``differentiation.py`` has the same rules for evaluators.  ``torch.library`` has no place for
forward mode, nor for ``torch.func.grad``; ``vmap`` and ordinary autograd through it do work.

Nothing is checked and nothing is refused: a matrix outside shows in the notes alone.  The first call for a network
copies its numbers to the device, so it has to come before a CUDA graph is captured.

Importing this module defines the operators; it needs triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import adjoint_of_frechet
from ..rules import LadderRules, StageRules, hashable
from . import composition as triton_composition
from . import exponential as triton_exponential


def _batched(A: Tensor) -> Tensor:
    return A.reshape(-1, *A.shape[-2:])


class Operator:
    """A matrix function and its derivative as operators.

    Args:
        function: its name.
        parameters: the schema of what describes a network.
        notes: name and dtype of what is said of each matrix (None: the real dtype of A).
        table: that of the kernels, from parameters, a real dtype and a device.
        compute: the kernel, (A, table, out) → notes.
        derive: the kernel of the derivative, (A, E, table, out).
    """

    def __init__(
        self,
        function: str,
        parameters: str,
        notes: dict[str, torch.dtype | None],
        table: Callable[[tuple[Any, ...], torch.dtype, torch.device], Any],
        compute: Callable[[Tensor, Any, Tensor], Sequence[Tensor]],
        derive: Callable[[Tensor, Tensor, Any, Tensor], None],
    ) -> None:
        self.notes, self.table, self.compute, self.derive = notes, table, compute, derive
        outputs = ", ".join(["Tensor value", *(f"Tensor {name}" for name in notes)])
        define = torch.library.custom_op
        self.value = define(
            f"neural_expm::{function}",
            self._value,
            mutates_args=(),
            schema=f"(Tensor A, {parameters}) -> ({outputs})",
        )
        self.frechet = define(
            f"neural_expm::{function}_frechet",
            self._frechet,
            mutates_args=(),
            schema=f"(Tensor A, Tensor E, {parameters}) -> Tensor",
        )
        self.value.register_fake(self._fake_value)
        self.frechet.register_fake(
            lambda A, E, *parameters: torch.empty_like(A, memory_format=torch.contiguous_format)
        )
        self.value.register_autograd(self._value_backward, setup_context=self._save_value)
        self.frechet.register_autograd(self._frechet_backward, setup_context=self._save_frechet)
        self.value.register_vmap(self._value_vmap)
        self.frechet.register_vmap(self._frechet_vmap)

    # --- what is computed ------------------------------------------------------------------------------------------

    def _value(self, A: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
        flat = _batched(A)
        out = torch.empty(flat.shape, dtype=A.dtype, device=A.device)
        table = self.table(hashable(parameters), A.dtype.to_real(), A.device)
        notes = self.compute(flat, table, out)
        return out.reshape(A.shape), *(note.reshape(A.shape[:-2]) for note in notes)

    def _fake_value(self, A: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
        value = torch.empty_like(A, memory_format=torch.contiguous_format)
        kinds = (kind or A.dtype.to_real() for kind in self.notes.values())
        return value, *(A.new_empty(A.shape[:-2], dtype=kind) for kind in kinds)

    def _frechet(self, A: Tensor, E: Tensor, *parameters: Any) -> Tensor:
        flat = _batched(A)
        out = torch.empty(flat.shape, dtype=A.dtype, device=A.device)
        table = self.table(hashable(parameters), A.dtype.to_real(), A.device)
        self.derive(flat, _batched(E), table, out)
        return out.reshape(A.shape)

    # --- autograd --------------------------------------------------------------------------------------------------

    @staticmethod
    def _save_value(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        A, *ctx.parameters = inputs
        ctx.save_for_backward(A)
        ctx.mark_non_differentiable(*output[1:])

    def _value_backward(self, ctx: Any, G: Tensor, *notes: Any) -> tuple[Any, ...]:
        (A,) = ctx.saved_tensors
        return self.frechet(A.mH, G, *ctx.parameters), *(None for _ in ctx.parameters)

    @staticmethod
    def _save_frechet(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        A, E, *ctx.parameters = inputs
        ctx.save_for_backward(A, E)

    def _frechet_backward(self, ctx: Any, H: Tensor) -> tuple[Any, ...]:
        A, E = ctx.saved_tensors
        nothing = [None for _ in ctx.parameters]
        if not ctx.needs_input_grad[0]:
            return None, self.frechet(A.mH, H, *ctx.parameters), *nothing
        return *adjoint_of_frechet(A, E, H, lambda M, B: self.frechet(M, B, *ctx.parameters)), *nothing

    # --- vmap ------------------------------------------------------------------------------------------------------

    def _value_vmap(
        self, info: Any, in_dims: tuple[Any, ...], A: Tensor, *parameters: Any
    ) -> tuple[Any, Any]:
        return self.value(A.movedim(in_dims[0], 0), *parameters), (0,) * (1 + len(self.notes))

    def _frechet_vmap(
        self, info: Any, in_dims: tuple[Any, ...], A: Tensor, E: Tensor, *parameters: Any
    ) -> tuple[Tensor, int]:
        A, E = (
            X.expand(info.batch_size, *X.shape) if dim is None else X.movedim(dim, 0)
            for X, dim in zip((A, E), in_dims[:2], strict=True)
        )
        return self.frechet(A, E, *parameters), 0


def _composition(function: str) -> Operator:
    return Operator(
        function,
        "float[] hermitian, float[] general, float[] radii, float scale, int passes, float unit, float largest",
        {
            "passes": torch.int32,
            "residual": None,
            "accepted": torch.bool,
            "scaled": None,
            "symmetric": torch.bool,
        },
        lambda parameters, dtype, device: triton_composition.table(
            StageRules(*parameters), function == "sqrtm", dtype, device
        ),
        lambda A, table, out: tuple(vars(triton_composition.composition(A, table, out)).values()),
        triton_composition.composition_frechet,
    )


OPERATORS = {
    "expm": Operator(
        "expm",
        "float[] radii, int[] rung_tiers, float[] tier_radii, float[] weights, int[] products, int max_squarings, "
        "int derivative_level",
        {"tier": torch.int32, "squarings": torch.int32, "level": torch.uint8},
        lambda parameters, dtype, device: triton_exponential.table(LadderRules(*parameters), dtype, device),
        triton_exponential.exponential,
        triton_exponential.exponential_frechet,
    ),
    "sign": _composition("sign"),
    "sqrtm": _composition("sqrtm"),
}
