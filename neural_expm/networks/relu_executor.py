"""Runs constructed ReLU networks: sparse affine maps with ReLUs between them, as a PyTorch module."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from ..errors import CheckpointError, InputError
from .relu import ReLUNet
from .relu_construction import Recipe, recipe_from_config, recipe_to_config

MAX_DENSE_PARAMETERS = 20_000_000


class ConstructedReLUNet(ReLUNet):
    """Runs a constructed network: affine, ReLU, affine, …, affine, and nothing else.

    The weights follow from the recipe (`ExpRecipe`, `SqrtRecipe`), so the state dict is empty and the
    checkpoint is the recipe. Classical equivalents: `torch.linalg.matrix_exp`, the principal square root.
    Certified in float64; float32 adds rounding, see ``recipe.rounding``. Gradients are those of a piecewise
    linear function: within about 2^{−m} of the true ones almost everywhere, but wrong on breakpoints (such as
    dyadic entries), where ρ'(0) = 0 is a choice.

    Args:
        recipe: what to compute, and how well.

    Shape: (*, n, n) real → (*, n, n), in the dtype of the network (float64 unless ``.to()`` says so).
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.n = recipe.n
        self.config = {"kind": "constructed", **recipe_to_config(recipe)}
        self.depth = recipe.size().depth
        for index, (weights, bias) in enumerate(recipe.layers()):
            entries = sparse.coo_array(weights)
            indices = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
            self.register_buffer(f"indices{index}", indices, persistent=False)
            self.register_buffer(f"values{index}", torch.from_numpy(entries.data), persistent=False)
            self.register_buffer(f"bias{index}", torch.from_numpy(bias)[:, None], persistent=False)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ConstructedReLUNet:
        """Build from ``{"kind": "constructed", "function": …, the recipe's numbers}``."""
        try:
            return cls(recipe_from_config({key: value for key, value in config.items() if key != "kind"}))
        except InputError as error:
            raise CheckpointError(f"bad recipe in the checkpoint: {error}") from error

    def weights(self, index: int) -> Tensor:
        """Weight matrix of layer `index` (0 … depth), sparse COO."""
        shape = (len(self.get_buffer(f"bias{index}")), self._inputs(index))
        indices, values = self.get_buffer(f"indices{index}"), self.get_buffer(f"values{index}")
        return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=True, check_invariants=False)

    def layers(self) -> list[tuple[sparse.csr_array, np.ndarray]]:
        """The affine maps as (scipy sparse weights, bias), for taking apart and export."""
        return self.recipe.layers()

    def _inputs(self, index: int) -> int:
        return len(self.get_buffer(f"bias{index - 1}")) if index else self.n * self.n

    def forward(self, A: Tensor) -> Tensor:
        """The function of each matrix of A, shape (*, n, n)."""
        hidden = self._received(A, self.get_buffer("bias0").dtype).reshape(-1, self.n * self.n).T
        for index in range(self.depth + 1):
            hidden = torch.sparse.mm(self.weights(index), hidden) + self.get_buffer(f"bias{index}")
            if index < self.depth:
                hidden = hidden.relu()
        return hidden.T.reshape(A.shape)

    def to_dense(self) -> nn.Sequential:
        """The same network as plain ``nn.Linear`` and ``nn.ReLU`` on row-major vectors (*, n²) → (*, n²).

        Raises:
            InputError: the dense weights would exceed 20 million numbers.
        """
        size = self.recipe.size()
        if size.dense_parameters > MAX_DENSE_PARAMETERS:
            raise InputError(
                f"dense, this network has {size.dense_parameters:,} parameters (sparse {size.parameters:,}), "
                f"more than the {MAX_DENSE_PARAMETERS:,} that are built; take a smaller n or a larger epsilon"
            )
        modules: list[nn.Module] = []
        for index in range(self.depth + 1):
            weights, bias = self.weights(index).to_dense(), self.get_buffer(f"bias{index}")[:, 0]
            linear = nn.Linear(weights.shape[1], weights.shape[0], dtype=weights.dtype, device=weights.device)
            linear.weight = nn.Parameter(weights, requires_grad=False)
            linear.bias = nn.Parameter(bias.clone(), requires_grad=False)
            modules += [linear, nn.ReLU()] if index < self.depth else [linear]
        return nn.Sequential(*modules)
