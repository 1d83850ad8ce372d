"""sign and the square root by compositions p_T∘…∘p₁ of odd equivariant layers, certified at run time.

A small residual ‖S² − I‖ alone proves nothing: an eigenvalue may have crossed the imaginary axis on the way.  What is
proved here instead:

1. offline, Re p_t(z) > 0 for Re z > 0, |z| ≤ R_t (``certificate.half_plane_radius``);
2. at run time the spectral radius stays below R_t, shown by ‖X_t²‖^{1/2} or sharper, so no eigenvalue has crossed;
3. at the end η = ‖X_T² − I‖ < 1.  Then sign(X_T) = sign(A), X_T sign(A) = (X_T²)^{1/2}, and
   ‖X_T − sign(A)‖ ≤ (1 − √(1 − η))‖sign(A)‖ (DESIGN section 4).

A Hermitian matrix has a real spectrum, and an odd p_t with p_t > 0 on (0, u_t] keeps its signs; there only η is left to
check, and the stages may be the steepest ones.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..differentiation import matrix_function
from ..domain import Reason
from ..errors import CheckpointError
from ..kernels import triton_route
from ..kernels.composition import Algebra, Stage, sign_pass, sqrt_pass
from ..kernels.eager import chunks, put, take
from ..kernels.layout import layout_for
from ..kernels.rules import StageRules
from ..kernels.symbolic import CompositionProgram
from .exponential import Trusted
from .pretrained import Pretrained

CONFIG_KEYS = {"hermitian_stages", "general_stages", "general_radii", "general_scale", "passes"}
# The residual at which a result is taken, in units of n·eps·‖X‖²: rounding alone leaves about one.
ACCEPTED = 16.0
LARGEST_RESIDUAL = 1e-3  # so that the bound of any accepted matrix is below the one in the manifest


@dataclass
class Outcome:
    """Of each matrix: how it was scaled, how many passes it took, its residual η, and why it failed if it did."""

    scale: Tensor
    passes: Tensor
    hermitian: Tensor
    residual: Tensor
    products: Tensor
    reason: Tensor | None = None
    kernel: str = "eager"
    details: dict[str, Tensor] = field(default_factory=dict)

    def describe(self) -> dict[str, Tensor]:
        """``bound``, ``products`` and ``squarings`` of each matrix."""
        if not self.details:
            eta = self.residual.double().clamp(max=1.0)
            # 1 − √(1 − η) without cancellation
            bound = eta / (1 + torch.sqrt(1 - eta))
            self.details = {
                "bound": bound,
                "products": self.products,
                "squarings": torch.zeros_like(self.products),
            }
        return self.details


class _Composition(Pretrained, nn.Module):
    """What sign and the square root share: stages, scaling, passes, certificate."""

    family = "equivariant"
    function: str
    products_per_stage = 3

    def __init__(
        self,
        hermitian_stages: int,
        general_stages: int,
        general_radii: list[float],
        general_scale: float,
        passes: int,
    ) -> None:
        super().__init__()
        self._program: triton_route.Traced | None = None
        self.config: dict[str, Any] = {
            "hermitian_stages": hermitian_stages,
            "general_stages": general_stages,
            "general_radii": general_radii,
            "general_scale": general_scale,
            "passes": passes,
        }
        self.hermitian = nn.Parameter(torch.zeros(hermitian_stages, 3, dtype=torch.float64))
        self.general = nn.Parameter(torch.zeros(general_stages, 3, dtype=torch.float64))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _Composition:
        """Rebuild from ``config``.

        Raises:
            CheckpointError: a key is unknown or missing, or the radii do not match the stages.
        """
        if set(config) != CONFIG_KEYS or len(config["general_radii"]) != config["general_stages"]:
            raise CheckpointError(
                f"composition: configuration {sorted(config)}, expected {sorted(CONFIG_KEYS)}"
            )
        if not all(0 < config[key] <= 32 for key in ("hermitian_stages", "general_stages", "passes")):
            raise CheckpointError(f"composition: absurd numbers of stages in {config}")
        return cls(**config)

    def _stages(self, hermitian: bool) -> tuple[list[Stage], list[float] | None]:
        """The stages of a pass, and their R_t where the spectrum may be complex."""
        rows = (self.hermitian if hermitian else self.general).detach().tolist()
        return [(a, b, c) for a, b, c in rows], None if hermitian else self.config["general_radii"]

    def rules(self, dtype: torch.dtype) -> StageRules:
        """The composition as plain numbers; the same for every dtype."""
        return StageRules(
            hermitian=tuple(self.hermitian.detach().flatten().tolist()),
            general=tuple(self.general.detach().flatten().tolist()),
            radii=tuple(self.config["general_radii"]),
            scale=self.config["general_scale"],
            passes=self.config["passes"],
            unit=ACCEPTED,
            largest=LARGEST_RESIDUAL,
        )

    def _count(self, hermitian: bool, passes: Tensor) -> Tensor:
        """Matrix products of some passes: those of the stages, and one for the residual."""
        return passes * (self.products_per_stage * len(self._stages(hermitian)[0]) + 1)

    @abstractmethod
    def _scale(self, A: Tensor, hermitian: bool) -> Tensor:
        """1/c for each matrix, such that the spectrum of A/c fits the first stage."""

    def _start(self, algebra: Algebra, A: Tensor, E: Tensor | None, scale: Tensor) -> Tensor:
        """The scaled chunk, as a value or as a pair with its direction, in the layout."""
        count = A.shape[0]
        X = algebra.layout.empty((2,) if algebra.dual else (), count, A)
        scale = scale.to(A.dtype)
        algebra.layout.load(A, algebra.value(X), scale)
        if E is not None:
            algebra.layout.load(E, X[1], scale)
        return X

    @abstractmethod
    def _pass(self, algebra, state, stages, radii):
        """See the module: what differs between sign and the square root."""

    @abstractmethod
    def _square(self, algebra: Algebra, state: tuple[Tensor, ...]) -> Tensor:
        """X² of the current state."""

    @abstractmethod
    def _state(self, algebra: Algebra, X: Tensor) -> tuple[Tensor, ...]:
        """See the module: what differs between sign and the square root."""

    @abstractmethod
    def _unscale(self, X: Tensor, scale: Tensor) -> Tensor:
        """See the module: what differs between sign and the square root."""

    # --- values ----------------------------------------------------------------------------------------------------

    def outcome(self, A: Tensor, trust: bool = False) -> Outcome:
        """What :meth:`run` would report; the certificate needs the composition, so it is run."""
        return self.run(A, trust)[1]

    def run(self, A: Tensor, trust: bool = False) -> tuple[Tensor, Outcome]:
        """The function of the matrices whose certificate holds; the others are named in ``outcome.reason``.

        Args:
            A: shape (batch, n, n), float32/float64/complex64/complex128.
            trust: report no failures.
        """
        batch, real = A.shape[0], A.real.dtype if A.is_complex() else A.dtype
        out = torch.empty(A.shape, dtype=A.dtype, device=A.device)
        if (fused := self._run_triton(A, trust, out)) is not None:
            return out, fused
        hermitian = (A.mH == A).flatten(1).all(1)
        outcome = Outcome(
            scale=torch.ones(batch, dtype=real, device=A.device),
            passes=torch.zeros(batch, dtype=torch.int64, device=A.device),
            hermitian=hermitian,
            residual=torch.full((batch,), torch.inf, dtype=real, device=A.device),
            products=torch.zeros(batch, dtype=torch.int64, device=A.device),
        )
        kept = torch.ones(batch, dtype=torch.bool, device=A.device)
        for structure in (True, False):
            rows = torch.nonzero(hermitian == structure)[:, 0]
            if rows.numel():
                self._run_rows(A, rows if rows.numel() < batch else None, structure, out, outcome, kept)
        size = torch.linalg.vector_norm(out, dim=(-2, -1)).square().clamp_min(1.0)
        accepted = self._accepted(A, size)
        if not trust:
            outcome.reason = self._reason(A, kept & (outcome.residual <= accepted))
        return out, outcome

    def _run_triton(self, A: Tensor, trust: bool, out: Tensor) -> Outcome | None:
        """Under ``trust`` without a word to the host."""
        kernel = triton_route.find(A, self)
        notes = None if kernel is None else kernel.value(A, out)
        if notes is None:
            return None
        passes, residual, accepted, scale, hermitian = notes
        passes = passes.long()
        products = torch.where(hermitian, self._count(True, passes), self._count(False, passes))
        reason = None if trust else self._reason(A, accepted)
        return Outcome(scale, passes, hermitian, residual, products, reason, "triton")

    @staticmethod
    def _reason(A: Tensor, accepted: Tensor) -> Tensor | None:
        if bool(accepted.all()):
            return None
        finite = torch.isfinite(A).flatten(1).all(1)
        code = torch.where(finite, int(Reason.NO_CERTIFICATE), int(Reason.NOT_FINITE))
        return torch.where(accepted, int(Reason.INSIDE), code).to(torch.uint8)

    def _accepted(self, A: Tensor, size: Tensor) -> Tensor:
        eps = torch.finfo(size.dtype).eps
        return (ACCEPTED * A.shape[-1] * eps * size).clamp_max(LARGEST_RESIDUAL)

    def _run_rows(self, A, rows, structure, out, outcome, kept) -> None:
        layout = layout_for(A.shape[-1], A.shape[0] if rows is None else rows.shape[0])
        algebra = Algebra(layout, dual=False)
        for at, _ in chunks(A, rows):
            chunk = take(A, at)
            scale = self._scale(chunk, structure)
            state = self._state(algebra, self._start(algebra, chunk, None, scale))
            passes = torch.zeros(chunk.shape[0], dtype=torch.int64, device=A.device)
            good = torch.ones(chunk.shape[0], dtype=torch.bool, device=A.device)
            residual = torch.full_like(scale, torch.inf)
            open_ = torch.arange(chunk.shape[0], device=A.device)
            for _ in range(self.config["passes"]):
                moved, fine = self._pass(algebra, self._pick(algebra, state, open_), *self._stages(structure))
                eta = algebra.distance(self._square(algebra, moved))
                self._place(algebra, state, open_, moved)
                passes[open_] += 1
                residual[open_] = eta
                if fine is not None:
                    good[open_] &= fine
                size = (
                    torch.linalg.vector_norm(layout.matrices(moved[0]), dim=(-2, -1)).square().clamp_min(1.0)
                )
                open_ = open_[~(eta <= self._accepted(A, size)) & good[open_] & torch.isfinite(eta)]
                if not open_.numel():
                    break
            put(out, at, self._unscale(layout.matrices(state[0]), scale))
            outcome.scale[at], outcome.passes[at], outcome.residual[at], kept[at] = (
                scale,
                passes,
                residual,
                good,
            )
            outcome.products[at] = self._count(structure, passes)

    @staticmethod
    def _pick(algebra: Algebra, state: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        axis = -1 if algebra.layout.dims == (0, 1) else -3
        whole = rows.numel() == state[0].shape[axis]
        return tuple(X.clone() if whole else X.index_select(axis, rows) for X in state)

    @staticmethod
    def _place(algebra: Algebra, state: tuple[Tensor, ...], rows: Tensor, moved: tuple[Tensor, ...]) -> None:
        axis = -1 if algebra.layout.dims == (0, 1) else -3
        for X, Y in zip(state, moved, strict=True):
            X.index_copy_(X.ndim + axis, rows, Y)

    # --- derivatives -----------------------------------------------------------------------------------------------

    def run_frechet(self, A: Tensor, E: Tensor, outcome: Outcome | None) -> Tensor:
        """L(A, E), by the same passes applied to the pair (A, E).  No outcome: every matrix is trusted."""
        out = torch.empty(A.shape, dtype=A.dtype, device=A.device)
        fused = triton_route.find(A, self)
        if fused is not None and fused.frechet(A, E, out):
            return out
        outcome = outcome or self.outcome(A, trust=True)
        for structure in (True, False):
            for passes in range(1, self.config["passes"] + 1):
                rows = torch.nonzero((outcome.hermitian == structure) & (outcome.passes == passes))[:, 0]
                if not rows.numel():
                    continue
                algebra = Algebra(layout_for(A.shape[-1], rows.shape[0]), dual=True)
                for at, _count in chunks(A, rows):
                    scale = outcome.scale[at]
                    state = self._state(algebra, self._start(algebra, take(A, at), take(E, at), scale))
                    for _ in range(passes):
                        state, _kept = self._pass(algebra, state, self._stages(structure)[0], None)
                    put(out, at, self._unscale(algebra.layout.matrices(state[0][1]), scale))
        return out

    def forward(self, A: Tensor) -> Tensor:
        """The function of A, shape (*, n, n), with no check of the certificate (``outside="trust"``)."""
        if torch.compiler.is_compiling():
            return self.program()(A)
        return matrix_function(A, Trusted(self))

    def program(self) -> triton_route.Traced:
        """For tracing: the general stages as plain numbers, or the Triton kernel as an operator."""
        if self._program is None:
            stages = tuple(self._stages(False)[0])
            scale, passes = self.config["general_scale"], self.config["passes"]
            program = CompositionProgram(self.function, stages, scale, passes)
            self._program = triton_route.Traced(self, program)
        return self._program


def _spectral_bound(A: Tensor) -> Tensor:
    """An upper bound of the spectral radius: min(‖A‖_F, ‖A²‖_F^{1/2}), tiny for A = 0."""
    square = torch.linalg.vector_norm(A @ A, dim=(-2, -1)).sqrt()
    bound = torch.minimum(torch.linalg.vector_norm(A, dim=(-2, -1)), square)
    return bound.clamp_min(torch.finfo(bound.dtype).tiny)


class EquivariantSign(_Composition):
    """sign(A).  Classical equivalent: ``scipy.linalg.signm``.

    Source: DESIGN section 4; minimax compositions: Nakatsukasa & Freund (2016), SIAM Rev. 58(3); Amsel et al., "The
    Polar Express" (2025).
    """

    function = "sign"

    def _scale(self, A: Tensor, hermitian: bool) -> Tensor:
        return (1.0 if hermitian else self.config["general_scale"]) / _spectral_bound(A)

    def _state(self, algebra: Algebra, X: Tensor) -> tuple[Tensor, ...]:
        return (X,)

    def _pass(self, algebra, state, stages, radii):
        X, kept = sign_pass(algebra, state[0], stages, radii)
        return (X,), kept

    def _square(self, algebra: Algebra, state: tuple[Tensor, ...]) -> Tensor:
        return algebra.multiply(state[0], state[0])

    def _unscale(self, X: Tensor, scale: Tensor) -> Tensor:
        return X


class EquivariantSquareRoot(_Composition):
    """The principal square root.  Classical equivalent: ``scipy.linalg.sqrtm``.

    Source: DESIGN section 4; Higham, *Functions of Matrices*, theorem 6.9 and section 6.7.
    """

    function = "sqrtm"
    products_per_stage = 4

    def _scale(self, A: Tensor, hermitian: bool) -> Tensor:
        # W = A/c² needs the square of the spectral radius that X = W^{1/2} needs.
        radius = 1.0 if hermitian else self.config["general_scale"]
        return radius**2 / _spectral_bound(A)

    def _state(self, algebra: Algebra, X: Tensor) -> tuple[Tensor, ...]:
        Z = torch.zeros_like(X)
        algebra.layout.add_identity(algebra.value(Z), 1.0)
        return X, Z

    def _pass(self, algebra, state, stages, radii):
        Y, Z, kept = sqrt_pass(algebra, *state, stages, radii)
        return (Y, Z), kept

    def _square(self, algebra: Algebra, state: tuple[Tensor, ...]) -> Tensor:
        return algebra.multiply(state[1], state[0])

    def _unscale(self, X: Tensor, scale: Tensor) -> Tensor:
        # (A/c²)^{1/2} = A^{1/2}/c, and the derivative scales alike: its direction was divided by c² too.
        return X / scale.sqrt()[:, None, None].to(X.dtype)
