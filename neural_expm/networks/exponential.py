"""exp by tiers of equivariant transformers: per matrix, a norm bound picks the depth m and the squarings s."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..differentiation import matrix_function
from ..errors import CheckpointError, InputError
from ..kernels import eager, native, one_parameter
from ..kernels.calling import CPU, aside, readable
from ..kernels.exponential_kernel import Bound, ExponentialKernel, Rungs
from ..kernels.one_parameter import OneParameter
from ..kernels.precision import HALF, full_precision
from ..kernels.results import empty_result, reshaped
from ..kernels.rules import LadderRules
from ..kernels.symbolic import ExponentialProgram
from ..kernels.triton import route as triton_route
from .at_once import bound_operations
from .derived import Derived
from .equivariant import EquivariantTransformer
from .ladder import MAJORANT_RATIO, Ladder, Rung
from .plan import Plan, TieredPlan, plan_for, reasons
from .pretrained import Pretrained
from .protocols import Network

# The first exponential of many doubles that a process asks torch 2.13 with MKL for has nine digits in one process of
# some hundred: two threads find tables half made, which one exponential beforehand makes.  Ours are those of matrices
# with n = 1 and of ``one_parameter.py``.  Asked aside: this may be imported under a mode whose tensors are others.
aside(lambda: torch.zeros(1, device=CPU).exp())

TIER_KEYS = {"products", "radius", "majorant_radius", "epsilon"}


class EquivariantExponential(Derived, Pretrained, nn.Module):
    """exp(A) for any n, any batch shape, real or complex; exact weights, certified error.

    Args:
        tiers: for each tier ``products``, ``radius`` (certified ‖A‖₂), ``majorant_radius`` (certified
            β = ‖A²‖^{1/2}, see ``certificate.py``) and ``epsilon``.
        max_squarings: the domain ends at the deepest tier's radius times 2 to this power.
        rtol: leave out what promises less than this.

    Calling the module takes every input for inside the domain (``outside="trust"``) and is differentiable.

    Classical equivalent: ``torch.linalg.matrix_exp``.  Source: ``networks/equivariant.py``; scaling and squaring as in
    Higham, *Functions of Matrices*, section 10.3.
    """

    family = "equivariant"
    function = "expm"
    made: ClassVar = ("_rungs", "_plain", "_program")
    bound: ClassVar = ("_rungs",)

    def __init__(self, tiers: list[dict[str, Any]], max_squarings: int, rtol: float = float("inf")) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"tiers": tiers, "max_squarings": max_squarings}
        self.rtol = rtol
        self.tiers = _module_list(EquivariantTransformer(tier["products"]) for tier in tiers)
        self._program: triton_route.Traced | None = None
        # What was made of the weights, and after how many times that weights were loaded.
        self._rungs: dict[torch.dtype, tuple[int, Rungs]] = {}
        self._plain: dict[torch.dtype, tuple[int, LadderRules]] = {}
        self.ladder = Ladder(
            [(t["products"], t["radius"], t["majorant_radius"], t["epsilon"]) for t in tiers],
            max_squarings,
            rtol,
        )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> EquivariantExponential:
        """Rebuild from ``config``.

        Raises:
            CheckpointError: a key is unknown or missing, a radius is not positive, or the tiers are not increasing.
        """
        tiers = config.get("tiers")
        if (
            set(config) != {"tiers", "max_squarings"}
            or not tiers
            or any(set(tier) != TIER_KEYS for tier in tiers)
        ):
            raise CheckpointError(
                f"equivariant exponential: configuration needs max_squarings and tiers with {sorted(TIER_KEYS)}"
            )
        radii = [tier["radius"] for tier in tiers]
        if (
            not all(0 < a < b for a, b in zip([1e-300, *radii], radii, strict=False))
            or not 0 <= config["max_squarings"] <= 20
        ):
            raise CheckpointError(
                f"equivariant exponential: radii {radii} must increase, squarings be 0 to 20"
            )
        return cls(**config)

    @property
    def radius(self) -> float:
        """Largest norm bound that any rung serves."""
        return self.ladder.radius

    def outcome(self, A: Tensor, trust: bool = False) -> Plan:
        """What :meth:`run` would report; nothing is computed, except by the Triton kernel, which knows no half way."""
        if triton_route.find(A, self) is not None:
            return self.run(A, trust)[1]
        kernel = native.find(A, "expm")
        return self._shared(A, kernel, None) or self._each(A, kernel, trust)

    # --- computing -------------------------------------------------------------------------------------------------

    def run(self, A: Tensor, trust: bool = False) -> tuple[Tensor, Plan]:
        """Exp of the matrices inside; rows outside are left unset and named in ``plan.reason``.

        Args:
            A: shape (batch, n, n), float32/float64/complex64/complex128.
        """
        out = empty_result(A)
        if (tiered := self._run_triton(A, trust, out)) is not None:
            return out, tiered
        kernel = native.find(A, "expm")
        plan = self._shared(A, kernel, out)
        if plan is not None and plan.shared is not None:
            plan.shared.exponentials(out)
            return out, plan
        if kernel is not None:
            return out, self._run_native(kernel, A, trust, out)
        plan = plan_for(A, self.ladder, trust)
        if A.shape[-1] == 1:
            return A.exp(), plan  # a polynomial loses digits of e^{−|a|} that the scalar function keeps
        occupied = eager.occupied_rows(A)
        for rung, rows in plan.by_group():
            self.compute(A, None, rung, rows, out, plan.squares, occupied)
        plan.squares = None
        return out, plan

    def compute(
        self,
        A: Tensor,
        E: Tensor | None,
        rung: Rung,
        rows: Tensor | None,
        out: Tensor,
        squares: Tensor | None = None,
        occupied: int | None = None,
    ) -> None:
        """Out[rows] ← exp(A[rows]), or L(A[rows], E[rows]), by one rung and torch operations (``kernels/eager.py``)."""
        weights, identity = self.packed(rung, A)
        eager.exponential(A, E, weights, identity, rung.squarings, out, rows, squares, occupied)

    def packed(self, rung: Rung, A: Tensor) -> tuple[list[Tensor], float]:
        """``EquivariantTransformer.packed`` of a rung for matrices like A, and its read-out of I."""
        tier = self.tiers[rung.tier]
        return tier.packed(A.dtype.to_real(), A.device), tier.identity

    def may_share(self, A: Tensor) -> bool:
        """Whether :meth:`run` looks for what the matrices of batches like A have in common."""
        return one_parameter.worthwhile(A, native.ready(A, "expm") is not None)

    def multiples(self, A: Tensor, scratch: Tensor) -> OneParameter | None:
        """What a batch of multiples of one matrix, all of them inside, has in common; None for any other.

        Equivariance leaves of each matrix its eigenvalues, which are 1 × 1 matrices.  For ``scratch`` see
        :meth:`OneParameter.find`.
        """
        shared = OneParameter.find(A, scratch)
        return shared if shared is not None and shared.norm() <= self.ladder.radius else None

    def _shared(self, A: Tensor, kernel: Any, scratch: Tensor | None) -> Plan | None:
        """The plan for :meth:`multiples`, where they are faster so."""
        if not one_parameter.worthwhile(A, kernel is not None):
            return None
        shared = self.multiples(A, torch.empty_like(A) if scratch is None else scratch)
        if shared is None:
            return None
        return Plan(None, None, self.ladder, A.shape[0], A.device, kernel="eigenbasis", shared=shared)

    def _each(self, A: Tensor, kernel: Any, trust: bool) -> Plan:
        """The plan for each matrix by itself."""
        if kernel is not None:
            return self._run_native(kernel, A, trust, None)
        plan = plan_for(A, self.ladder, trust)
        plan.squares = None
        return plan

    def _run_native(self, kernel: Any, A: Tensor, trust: bool, out: Tensor | None) -> Plan:
        levels, outside = kernel.value(A, self.rungs(A.dtype.to_real()), trust, out)
        reason = reasons(A, levels, self.ladder) if outside else None
        return Plan(None, levels, self.ladder, A.shape[0], A.device, reason, kernel=kernel.name)

    def _run_triton(self, A: Tensor, trust: bool, out: Tensor) -> TieredPlan | None:
        """Under ``trust`` without a word to the host."""
        kernel = triton_route.find(A, self)
        notes = None if kernel is None else kernel.value(A, out)
        if notes is None:
            return None
        *got, levels = notes
        reason, last = None, len(self.ladder.rungs) - 1
        if trust:
            levels = levels.clamp_max(last)
        elif bool((levels > last).any()):
            reason = reasons(A, levels, self.ladder)
        count, device = A.shape[0], A.device
        tiers = self.config["tiers"]
        return TieredPlan(
            None, levels, self.ladder, count, device, reason, kernel="triton", tiers=tiers, got=tuple(got)
        )

    def calls(self, A: Tensor) -> Bound | None:
        """What answers now for batches like A, readable, on the CPU; None where a native kernel may yet come."""
        kernel = cast("ExponentialKernel | None", native.ready(A, "expm"))
        if kernel is not None:
            return kernel.bound(A.shape[0], self.rungs(A.dtype.to_real()))
        return bound_operations(self, *A.shape[:2]) if self.settled(A) else None

    def settled(self, A: Tensor) -> bool:
        """Whether :meth:`calls` are the same for all such batches from now on."""
        return self.shared and native.settled(A, "expm") and triton_route.find(A, self) is None

    def rungs(self, dtype: torch.dtype) -> Rungs:
        """The ladder for the native kernels, in a real dtype; made anew after weights were loaded."""
        self.refresh()
        known, loads = self._rungs.get(dtype), EquivariantTransformer.loads
        if known is None or known[0] != loads:
            flat = [tier.flat(dtype) for tier in self.tiers]
            networks = [
                (flat[rung.tier], self.tiers[rung.tier].identity, rung.squarings)
                for rung in self.ladder.rungs
            ]
            radii, majorants = (
                torch.tensor(x, dtype=dtype, device=CPU)
                for x in (self.ladder.radii, self.ladder.majorant_radii)
            )
            floor = self.ladder.derivative_level
            known = loads, Rungs(radii, majorants, MAJORANT_RATIO, networks, floor)
            self._rungs[dtype] = known
        return known[1]

    def rules(self, dtype: torch.dtype) -> LadderRules | None:
        """The ladder as plain numbers, its weights rounded to a real dtype; made anew after weights were loaded.

        None where an ``rtol`` was promised: a tier that neighbours share may be squared more than a rung allows.
        """
        if self.rtol < math.inf:
            return None
        self.refresh()
        known, loads = self._plain.get(dtype), EquivariantTransformer.loads
        if known is None or known[0] != loads:
            weights = [(*tier.flat(dtype).tolist(), tier.identity) for tier in self.tiers]
            rungs, tiers = self.ladder.rungs, self.config["tiers"]
            known = (
                loads,
                LadderRules(
                    radii=tuple(self.ladder.radii),
                    rung_tiers=tuple(rung.tier for rung in rungs),
                    tier_radii=tuple(tier["radius"] for tier in tiers),
                    weights=tuple(chain.from_iterable(weights)),
                    products=tuple(tier["products"] for tier in tiers),
                    max_squarings=self.ladder.most_squarings,
                    derivative_level=self.ladder.derivative_level,
                ),
            )
            self._plain[dtype] = known
        return known[1]

    def run_frechet(self, A: Tensor, E: Tensor, plan: Plan | None) -> Tensor:
        """L(A, E) of the matrices inside; rows outside are left unset.  No plan: every matrix is trusted."""
        if A.shape[-1] == 1:
            return A.exp() * E
        out = empty_result(A)
        fused = triton_route.find(A, self)
        if fused is not None and fused.frechet(A, E, out):
            return out
        plan = plan or self.outcome(A, trust=True)
        if plan.shared is not None:
            if readable(E) and plan.shared.frechet(A, E, out):
                return out
            plan = self._each(A, native.find(A, "expm"), True)
        if readable(E) and (kernel := native.find(A, "expm")) is not None:
            kernel.frechet(A, E, self.rungs(A.dtype.to_real()), plan.by_row(), out)
            return out
        rungs, floor = self.ladder.rungs, self.ladder.derivative_level
        for rung, rows in plan.by_group():
            self.compute(A, E, rungs[max(rungs.index(rung), floor)], rows, out)
        return out

    def program(self) -> triton_route.Traced:
        """For tracing: the deepest tier and all squarings as plain numbers, or the Triton kernel as an operator."""
        self.refresh()
        if self._program is None:
            self._program = triton_route.Traced(self, self.program_within(self.radius))
        return self._program

    def program_within(self, radius: float) -> ExponentialProgram:
        """The cheapest rung that reaches ``radius`` as plain numbers; it answers NaN beyond the radius of the rung.

        Raises:
            InputError: no rung reaches so far.
        """
        level = self.ladder.level(radius)
        if level == len(self.ladder.rungs):
            raise InputError(f"expm: no rung reaches radius {radius:g}; the largest is {self.radius:g}")
        rung = self.ladder.rungs[level]
        tier = self.tiers[rung.tier]
        heads = [
            (tuple(tier.scores[h, : h + 1].tolist()), tuple(tier.values[h, : h + 1].tolist()))
            for h in range(tier.products)
        ]
        *readout, last = tier.readout.tolist()
        # The last token bears its own weight: one of 1 − 1e-10 is taken for 1 by optimisers of ONNX graphs.
        scores, values = heads[-1]
        heads[-1] = tuple(last * score for score in scores), values
        unscaled = rung.radius / 2**rung.squarings
        return ExponentialProgram(tuple(heads), (*readout, 1.0), unscaled, rung.squarings)

    def forward(self, A: Tensor) -> Tensor:
        """exp(A), shape (*, n, n); half precision is computed in single."""
        B = A.to(HALF.get(A.dtype, A.dtype))
        result = self.program()(B) if torch.compiler.is_compiling() else matrix_function(B, Trusted(self))
        return result.to(A.dtype)


def _module_list(tiers: Iterable[EquivariantTransformer]) -> Sequence[EquivariantTransformer]:
    """An ``nn.ModuleList``, which does not tell a type checker what it holds."""
    return cast("Sequence[EquivariantTransformer]", nn.ModuleList(tiers))


def merged(networks: list[EquivariantExponential], rtol: float) -> EquivariantExponential:
    """One network with the tiers of several, and only the rungs whose promise is at most ``rtol``.

    Raises:
        InputError: no tier promises so much.
    """
    tiers = [
        (config, tier)
        for network in networks
        for config, tier in zip(network.config["tiers"], network.tiers, strict=True)
    ]
    best = min(config["epsilon"] for config, _ in tiers)
    if rtol < best:
        raise InputError(
            f"expm: rtol={rtol:g} is below what any network promises ({best:g}); use torch.linalg.matrix_exp"
        )
    tiers.sort(key=lambda pair: (pair[0]["radius"], pair[0]["products"]))
    squarings = max(network.config["max_squarings"] for network in networks)
    result = EquivariantExponential([config for config, _ in tiers], squarings, rtol)
    result.tiers = _module_list(tier for _, tier in tiers)
    result.share()
    return result.eval().requires_grad_(False)


class Trusted:
    """Evaluator of a network that takes every matrix for inside."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def value(self, A: Tensor) -> Tensor:
        if not A.numel():
            return A.clone()
        with full_precision(A):
            result = self.network.run(A.reshape(-1, *A.shape[-2:]), trust=True)[0]
            return reshaped(result, A.shape)

    def frechet(self, A: Tensor, E: Tensor) -> Tensor:
        flat = A.reshape(-1, *A.shape[-2:])
        with full_precision(A):
            result = self.network.run_frechet(flat, E.reshape(flat.shape), None)
            return reshaped(result, A.shape)

    def renewed(self) -> Trusted:
        return self
