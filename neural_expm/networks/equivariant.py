"""The equivariant transformer: attention without softmax, whose heads multiply matrices.

    X₀ = I, X₁ = A,   X_{h+1} = (Σᵢ q_{hi} Xᵢ)(Σᵢ v_{hi} Xᵢ),   h = 1 … m,      Y = Σᵢ oᵢ Xᵢ

Scores Q and values V run over the tokens A, X₂ … X_h only: an I in either adds nothing, because
(Q + aI)(V + bI) = QV + aV + bQ + abI, which later heads and the read-out absorb.

Every Xᵢ is a polynomial in A, so Y commutes with similarity, Y(PAP⁻¹) = P Y(A) P⁻¹, for every n and P, and
Y(Aᵀ) = Y(A)ᵀ.  The same real weights serve real and complex A, any n, any batch shape, any device.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..kernels.reference import polynomial
from .derived import Derived


class EquivariantTransformer(Derived, nn.Module):
    """A polynomial of degree ≤ 2ᵐ evaluated in m matrix products, with trainable attention.

    Args:
        products: m ≥ 1, the number of heads (layers), one matrix product each.

    Attributes:
        scores, values: shape (m, m), row h holds q_{h·} and v_{h·} over the tokens A = X₁, X₂ … X_m; entries above
            the diagonal (tokens not yet made) are zero.
        readout: shape (m + 2), over I, A, X₂ … X_{m+1}.
        scores_low, values_low, readout_low: what float64 rounding cut off the trained weights; the certified
            polynomial has the unevaluated sums as weights, the arithmetic rounds them to its dtype.

    Source: the evaluation schemes are those of Sastre, Ibáñez, Defez (2018) and Jarlebring,
    Fasi, Ringh (GraphMatFun, 2021) in their most general form.
    """

    family = "equivariant"
    scores: Tensor
    values: Tensor
    readout: Tensor
    scores_low: Tensor
    values_low: Tensor
    readout_low: Tensor
    made: ClassVar = ("_identity", "_packed", "_flat")
    loads: ClassVar[int] = 0  # how often weights were loaded into any of these networks

    def __init__(self, products: int) -> None:
        super().__init__()
        if not 1 <= products <= 16:
            raise CheckpointError(f"an equivariant transformer needs 1 to 16 products, got {products!r}")
        self.products = products
        for name, shape in (
            ("scores", (products, products)),
            ("values", (products, products)),
            ("readout", (products + 2,)),
        ):
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=torch.float64)))
            self.register_buffer(f"{name}_low", torch.zeros(shape, dtype=torch.float64))
        self._identity: float | None = None
        self._packed: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        self._flat: dict[torch.dtype, Tensor] = {}

    @property
    def config(self) -> dict[str, Any]:
        """What :meth:`from_config` needs."""
        return {"products": self.products}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> EquivariantTransformer:
        """Rebuild from :attr:`config`.

        Raises:
            CheckpointError: other keys than ``products``, or an absurd number of them.
        """
        if set(config) != {"products"} or not isinstance(config["products"], int):
            raise CheckpointError(
                f"equivariant transformer: configuration {config!r}, expected {{'products': int}}"
            )
        return cls(config["products"])

    def packed(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """The weights as the kernels read them, in a real dtype, made once per dtype and device.

        Returns:
            For heads 2 … m a (2, h) matrix (scores, values) over A … X_h; last a (1, m + 1) read-out over A … X_{m+1};
            the read-out of I is :attr:`identity`.  The kernels make X₂ = A·A; the scale of head 1 is moved into the
            weights of X₂.
        """
        self.refresh()
        key, packed = (dtype, device), self._packed
        if key not in packed:
            m, scale = self.products, self.scores[0, 0] * self.values[0, 0]
            rows = [torch.stack([self.scores[h, : h + 1], self.values[h, : h + 1]]) for h in range(1, m)]
            rows.append(self.readout[None, 1:])
            unit = torch.ones(m + 1, dtype=scale.dtype, device=scale.device)
            unit[1] = scale
            packed[key] = [
                (row * unit[: row.shape[1]]).detach().to(device=device, dtype=dtype).contiguous()
                for row in rows
            ]
        return packed[key]

    def flat(self, dtype: torch.dtype) -> Tensor:
        """:meth:`packed` on the CPU, one row after another: m² + 2m − 1 numbers, as the compiled kernels read them."""
        self.refresh()
        flat = self._flat
        if dtype not in flat:
            rows = self.packed(dtype, torch.device("cpu"))
            flat[dtype] = torch.cat([row.reshape(-1) for row in rows])
        return flat[dtype]

    @property
    def identity(self) -> float:
        """The read-out weight of X₀ = I."""
        self.refresh()
        identity = self._identity
        if identity is None:
            self._identity = identity = float(self.readout[0].detach())
        return identity

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        EquivariantTransformer.loads += 1
        self._packed.clear()
        self._identity = None
        self._flat.clear()

    def forward(self, A: Tensor) -> Tensor:
        """p(A), shape (*, n, n), by plain differentiable torch operations (trains, compiles and exports)."""
        real = A.real.dtype if A.is_complex() else A.dtype
        weights = [
            torch.stack([self.scores[h, : h + 1], self.values[h, : h + 1]]).to(real)
            for h in range(self.products)
        ]
        return polynomial(A, weights, self.readout.to(real))
