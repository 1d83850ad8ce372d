"""sign and the square root by compositions p_T∘…∘p₁ of odd equivariant layers, certified at run time.

A small residual ‖S² − I‖ alone proves nothing: an eigenvalue may have crossed the imaginary axis on the way.  What is
proved here instead:

1. offline, Re p_t(z) > 0 for Re z > 0, |z| ≤ R_t (``certificate.half_plane_radius``);
2. at run time the spectral radius stays below R_t, shown by ‖X_t²‖^{1/2} or sharper, so no eigenvalue has crossed; a
   matrix that loses this is given up at once;
3. at the end η = ‖X_T² − I‖ < 1.  Then sign(X_T) = sign(A), X_T sign(A) = (X_T²)^{1/2}, and
   ‖X_T − sign(A)‖ ≤ (1 − √(1 − η))‖sign(A)‖.

A Hermitian matrix has a real spectrum, and an odd p_t with p_t > 0 on (0, u_t] keeps its signs; there only η is left to
check, and the stages may be the steepest ones.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..differentiation import matrix_function
from ..domain import Reason, is_finite, is_hermitian
from ..errors import CheckpointError
from ..kernels import native
from ..kernels.calling import readable
from ..kernels.chunks import chunks, put, take
from ..kernels.composition import Algebra, Stage
from ..kernels.composition_kernel import Course, Passes
from ..kernels.layout import layout_for
from ..kernels.precision import HALF
from ..kernels.results import empty_result
from ..kernels.rules import StageRules
from ..kernels.symbolic import LARGEST_RESIDUAL, CompositionProgram
from ..kernels.triton import route as triton_route
from .derived import Derived
from .exponential import Trusted
from .outcome import Outcome
from .pretrained import Pretrained

CONFIG_KEYS = {"hermitian_stages", "general_stages", "general_radii", "general_scale", "passes"}
# The residual at which a result is taken, in units of n·eps·max(1, ‖X‖²), X scaled: rounding alone leaves about one.
ACCEPTED = 16.0
# Scales beyond which the fourth power of a norm may overflow or vanish: the exact algorithm knows how to take those.
EXTREME = {torch.float32: 1e8, torch.float64: 1e60}
# Share of the matrices of a chunk that must be done before the others are moved together.
WORTH_MOVING = 1 / 8


class Composition(Derived, Pretrained, nn.Module):
    """What sign and the square root share: stages, scaling, passes, certificate."""

    family = "equivariant"
    function: str
    made: ClassVar = ("_program", "_passes_made")
    bound: ClassVar = ("_passes_made",)
    products_per_stage = 3
    certified_at_run_time = True  # what is refused has lost a certificate, and may be near

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
        self._passes_made: Passes | None = None
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
    def from_config(cls, config: dict[str, Any]) -> Composition:
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

    def _products(self) -> tuple[int, int]:
        """Matrix products of a pass of a general and of a Hermitian matrix: the stages, and one for the residual."""
        per_stage, stages = self.products_per_stage, (self.general.shape[0], self.hermitian.shape[0])
        return per_stage * stages[0] + 1, per_stage * stages[1] + 1

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

    @abstractmethod
    def _radius(self, hermitian: bool) -> float:
        """The spectral radius of A/c that the first stage wants."""

    def _scale(self, A: Tensor, hermitian: bool) -> Tensor:
        """1/c for each matrix, such that the spectrum of A/c fits the first stage."""
        return self._radius(hermitian) / _spectral_bound(A)

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
    def _state(self, algebra: Algebra, X: Tensor) -> tuple[Tensor, ...]:
        """The state that the stages act on, from the scaled chunk."""

    @abstractmethod
    def _square(self, algebra: Algebra, state: tuple[Tensor, ...]) -> Tensor:
        """X² of the current state."""

    @abstractmethod
    def _advance(
        self, algebra: Algebra, state: tuple[Tensor, ...], W: Tensor, square: Tensor, stage: Stage
    ) -> tuple[Tensor, ...]:
        """The state after a stage, given W = X² and W²; uses up its arguments."""

    def _settle(self, algebra: Algebra, state: tuple[Tensor, ...]) -> None:
        """What there is to do for a derivative after the last stage."""

    @abstractmethod
    def _growth(self, scale: Tensor) -> Tensor:
        """By how much the scaled function must be multiplied to be f(A)."""

    # --- values ----------------------------------------------------------------------------------------------------

    def outcome(self, A: Tensor, trust: bool = False) -> Outcome:
        """What :meth:`run` would report; the certificate needs the composition, so it is run."""
        return self.run(A, trust)[1]

    def run(self, A: Tensor, trust: bool = False) -> tuple[Tensor, Outcome]:
        """The function of the matrices whose certificate holds; the others are named in ``outcome.reason``.

        Args:
            A: shape (batch, n, n), float32/float64/complex64/complex128.
            trust: check no certificate and report no failures.

        Returns:
            f(A), unset for the matrices that failed, and the outcome.
        """
        out = empty_result(A)
        if (answered := self._run_triton(A, out)) is not None:
            outcome, failed = answered
        elif (kernel := native.find(A, self.function)) is not None:
            outcome, failed = self._run_native(kernel, A, trust, out)
        else:
            outcome, failed = self._run_eager(A, trust, out)
        if not trust:
            outcome.reason = self._reasons(A, outcome.scale, failed)
        return out, outcome

    @staticmethod
    def _reasons(A: Tensor, scale: Tensor, failed: Tensor | None) -> Tensor | None:
        """Why the network does not answer for each matrix; None if it does for all."""
        most = EXTREME[scale.dtype]
        # NaN compares false.  Elsewhere than on a CPU asking would mean waiting.
        if not (scale.is_cpu and scale.min() > 1 / most and scale.max() < most):
            extreme = ~((scale > 1 / most) & (scale < most))
            failed = extreme if failed is None else failed | extreme
        if failed is None or not bool(failed.any()):
            return None
        reason = torch.where(failed, int(Reason.NO_CERTIFICATE), int(Reason.INSIDE)).to(torch.uint8)
        doubtful = torch.nonzero(~(scale > 0))[:, 0]  # a norm that is not finite
        if doubtful.numel():
            reason[doubtful[~is_finite(A[doubtful])]] = int(Reason.NOT_FINITE)
        return reason

    def _accepted(self, A: Tensor, size: Tensor) -> Tensor:
        """The residual at which a result is taken; ``size`` is ‖X‖² of the scaled X: no unit of A matters."""
        eps = torch.finfo(size.dtype).eps
        return (ACCEPTED * A.shape[-1] * eps * size.clamp_min(1.0)).clamp_max(LARGEST_RESIDUAL)

    def _passes(self) -> Passes:
        """The stages for the native kernels, made anew after weights were loaded."""
        self.refresh()
        passes = self._passes_made
        if passes is None:
            general, hermitian = ((*self._stages(h), self._radius(h)) for h in (False, True))
            self._passes_made = passes = Passes(general, hermitian, self.config["passes"])
        return passes

    def _run_triton(self, A: Tensor, out: Tensor) -> tuple[Outcome, Tensor | None] | None:
        """Without a word to the host."""
        kernel = triton_route.find(A, self)
        notes = None if kernel is None else kernel.value(A, out)
        if notes is None:
            return None
        passes, residual, accepted, scale, hermitian = notes
        outcome = Outcome(scale, passes.long(), hermitian, residual, self._products(), "triton")
        return outcome, ~accepted

    def _run_native(self, kernel: Any, A: Tensor, trust: bool, out: Tensor) -> tuple[Outcome, Tensor | None]:
        accepted = ACCEPTED * A.shape[-1] * torch.finfo(A.dtype).eps
        record = kernel.value(A, self._passes(), accepted, LARGEST_RESIDUAL, trust, out)
        outcome = Outcome(
            record.scale, record.passes, record.hermitian, record.residual, self._products(), kernel.name
        )
        return outcome, record.failed if record.any_failed else None

    def _run_eager(self, A: Tensor, trust: bool, out: Tensor) -> tuple[Outcome, Tensor | None]:
        batch, real = A.shape[0], A.dtype.to_real()
        hermitian = is_hermitian(A)
        outcome = Outcome(
            scale=torch.ones(batch, dtype=real, device=A.device),
            passes=torch.zeros(batch, dtype=torch.int64, device=A.device),
            hermitian=hermitian,
            residual=torch.full((batch,), torch.inf, dtype=real, device=A.device),
            products_per_pass=self._products(),
        )
        failed = torch.ones(batch, dtype=torch.bool, device=A.device)
        for structure in (True, False):
            rows = torch.nonzero(hermitian == structure)[:, 0]
            if not rows.numel():
                continue
            algebra = Algebra(layout_for(A.shape[-1], rows.shape[0]), dual=False)
            for at, _ in chunks(A, rows):
                self._run_chunk(algebra, A, at, structure, trust, out, outcome, failed)
        return outcome, failed

    def _run_chunk(self, algebra, A, rows, structure, trust, out, outcome, failed) -> None:
        """Send some rows through the stages; what is done, or has lost its certificate, leaves on the way."""
        stages, radii = self._stages(structure)
        most = self.config["passes"]
        chunk = take(A, rows)
        scale = outcome.scale[rows] = self._scale(chunk, structure)
        state = self._state(algebra, self._start(algebra, chunk, None, scale))
        leaving, gone = torch.zeros(rows.shape[0], dtype=torch.bool, device=A.device), 0
        for step in range(most * len(stages) + 1):
            W, (passes, t) = self._square(algebra, state), divmod(step, len(stages))
            if passes and not t:
                eta = algebra.distance(W)
                size = algebra.norms(state[0]).square()
                accepted = eta <= self._accepted(A, size)
                more = ~accepted & torch.isfinite(eta) & (passes < most)
                done = torch.nonzero(~(more | leaving))[:, 0]
                leaving = leaving | ~more
                if done.numel():
                    at, growth = rows[done], self._growth(outcome.scale[rows[done]])
                    outcome.passes[at], outcome.residual[at] = passes, eta[done]
                    failed[at] = ~accepted[done]
                    X = algebra.select(state[0], done)
                    put(out, at, algebra.layout.matrices(X) * growth[:, None, None].to(X.dtype))
                    algebra.release(X)
                gone = int(leaving.sum())
                if gone == leaving.numel():
                    algebra.release(*state, W)
                    return
            square = algebra.multiply(W, W)
            lost = algebra.beyond(W, square, radii[t]) if radii is not None and not trust else None
            if lost is not None:
                leaving[lost] = True
                gone = int(leaving.sum())
            if gone >= WORTH_MOVING * leaving.numel() or (gone and not t):
                stay = torch.nonzero(~leaving)[:, 0]
                rows, leaving, gone = rows[stay], leaving[stay], 0
                moved = (*state, W, square)
                *rest, W, square = (algebra.select(X, stay) for X in moved)
                state = tuple(rest)
                algebra.release(*moved)
                if not rows.numel():
                    return
            state = self._advance(algebra, state, W, square, stages[t])

    # --- derivatives -----------------------------------------------------------------------------------------------

    def run_frechet(self, A: Tensor, E: Tensor, outcome: Outcome | None) -> Tensor:
        """L(A, E) by the same passes applied to the pair (A, E); unset for the matrices that failed.

        No outcome: every matrix is trusted.
        """
        out = empty_result(A)
        fused = triton_route.find(A, self)
        if fused is not None and fused.frechet(A, E, out):
            return out
        outcome = outcome or self.outcome(A, trust=True)
        taken = outcome.computed()
        kernel = native.find(A, self.function)
        if kernel is not None and readable(E):
            kernel.frechet(A, E, self._passes(), Course(outcome.hermitian, taken, outcome.scale), out)
            return out
        for structure in (True, False):
            stages, _ = self._stages(structure)
            for passes in range(1, self.config["passes"] + 1):
                rows = torch.nonzero((outcome.hermitian == structure) & (taken == passes))[:, 0]
                if not rows.numel():
                    continue
                algebra = Algebra(layout_for(A.shape[-1], rows.shape[0]), dual=True)
                for at, _count in chunks(A, rows):
                    scale = outcome.scale[at]
                    state = self._state(algebra, self._start(algebra, take(A, at), take(E, at), scale))
                    for stage in stages * passes:
                        W = self._square(algebra, state)
                        state = self._advance(algebra, state, W, algebra.multiply(W, W), stage)
                    self._settle(algebra, state)
                    growth = self._growth(scale)[:, None, None].to(A.dtype)
                    put(out, at, algebra.layout.matrices(state[0][1]) * growth)
                    algebra.release(*state)
        return out

    def forward(self, A: Tensor) -> Tensor:
        """The function of A, shape (*, n, n), with no check of the certificate (``outside="trust"``).

        Half precision is computed in single.
        """
        B = A.to(HALF.get(A.dtype, A.dtype))
        result = self.program()(B) if torch.compiler.is_compiling() else matrix_function(B, Trusted(self))
        return result.to(A.dtype)

    def program(self) -> triton_route.Traced:
        """For tracing: the general stages as plain numbers, or the Triton kernel as an operator."""
        self.refresh()
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
