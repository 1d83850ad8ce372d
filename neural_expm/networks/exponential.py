"""exp by tiers of equivariant transformers: per matrix, a norm bound picks the depth m and the squarings s."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..differentiation import matrix_function
from ..domain import Reason, frobenius_norm, norm_bound
from ..errors import CheckpointError, InputError
from ..kernels import compiled, eager, triton_route
from ..kernels.precision import full_precision
from ..kernels.rules import LadderRules
from ..kernels.symbolic import ExponentialProgram
from .equivariant import EquivariantTransformer
from .ladder import MAJORANT_RATIO, Ladder, Rung, after_squaring
from .pretrained import Pretrained
from .protocols import Network

# From this n on A² is formed before the depth is chosen: its norm is a sharper guide, and the product is needed anyway.
# Below, the Frobenius norm alone is the guide: a sharper bound costs more than the product that it saves.
SQUARE_FIRST_N = 16
# For one matrix a call costs as much as a small product: below this n the Frobenius norm has to do.
SINGLE_SHARPER_N = 64
TIER_KEYS = {"products", "radius", "majorant_radius", "epsilon"}


@dataclass
class Plan:
    """Who computes what, and what the report says: groups of rows with one rung each, or the rung of every row.

    The eager kernel computes group by group; the compiled one sorts rows by itself and hands back ``levels``.
    """

    groups: list[tuple[Rung, Tensor | None]] | None
    levels: (
        Tensor | None
    )  # of the compiled kernel: uint8 index of each row's rung, their number for rows outside
    ladder: Ladder
    batch: int
    device: torch.device
    reason: Tensor | None = None  # None: every matrix is inside
    squares: Tensor | None = None
    details: dict[str, Tensor] = field(default_factory=dict)

    @property
    def kernel(self) -> str:
        """Which kernel the plan was made for."""
        return "eager" if self.levels is None else "compiled"

    def describe(self) -> dict[str, Tensor]:
        """``bound``, ``products`` and ``squarings`` of each matrix, as computed (after merging of groups)."""
        if not self.details:
            bound = torch.full((self.batch,), torch.nan, dtype=torch.float64, device=self.device)
            products = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
            squarings = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
            for rung, rows in self.by_group():
                at = slice(None) if rows is None else rows
                bound[at], products[at], squarings[at] = rung.bound, rung.products, rung.squarings
            self.details = {"bound": bound, "products": products, "squarings": squarings}
        return self.details

    def by_group(self) -> list[tuple[Rung, Tensor | None]]:
        """The rows of each rung."""
        if self.groups is None:
            rungs, levels = self.ladder.rungs, self.by_row()
            used = [level for level in levels.unique().tolist() if level < len(rungs)]
            self.groups = [(rungs[level], torch.nonzero(levels == level)[:, 0]) for level in used]
        return self.groups

    def by_row(self) -> Tensor:
        """The rung of each row."""
        if self.levels is not None:
            return self.levels
        rungs = self.ladder.rungs
        levels = torch.full((self.batch,), len(rungs), dtype=torch.uint8)
        for rung, rows in self.groups or []:
            levels[slice(None) if rows is None else rows] = rungs.index(rung)
        return levels


@dataclass
class TieredPlan(Plan):
    """Of the Triton kernel: ``levels`` are what the norms ask for, tier and squarings what each matrix got."""

    tiers: list[dict[str, Any]] = field(default_factory=list)
    got: tuple[Tensor, ...] = ()

    @property
    def kernel(self) -> str:
        """Which kernel computed."""
        return "triton"

    def describe(self) -> dict[str, Tensor]:
        """As :meth:`Plan.describe`."""
        if not self.details:
            tier, squarings = (X.long() for X in self.got)
            most = self.ladder.most_squarings + 1
            bounds = [[after_squaring(each["epsilon"], s) for s in range(most)] for each in self.tiers]
            products = torch.tensor([each["products"] for each in self.tiers], device=self.device)
            self.details = {
                "bound": torch.tensor(bounds, dtype=torch.float64, device=self.device)[tier, squarings],
                "products": products[tier],
                "squarings": squarings,
            }
        return self.details


class EquivariantExponential(Pretrained, nn.Module):
    """exp(A) for any n, any batch shape, real or complex; exact weights, certified error.

    Args:
        tiers: for each tier ``products``, ``radius`` (certified ‖A‖₂), ``majorant_radius`` (certified
            β = ‖A²‖^{1/2}, see ``certificate.py``) and ``epsilon``.
        max_squarings: the domain ends at the deepest tier's radius times 2 to this power.
        rtol: leave out what promises less than this.

    Calling the module takes every input for inside the domain (``outside="trust"``) and is differentiable.

    Classical equivalent: ``torch.linalg.matrix_exp``.  Source: DESIGN section 4; scaling and squaring as in Higham,
    *Functions of Matrices*, section 10.3.
    """

    family = "equivariant"
    function = "expm"

    def __init__(self, tiers: list[dict[str, Any]], max_squarings: int, rtol: float = float("inf")) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"tiers": tiers, "max_squarings": max_squarings}
        self.rtol = rtol
        self.tiers = _module_list(EquivariantTransformer(tier["products"]) for tier in tiers)
        self._program: triton_route.Traced | None = None
        self._native: dict[torch.dtype, tuple[list[Tensor], compiled.Rungs]] = {}
        self._plain: dict[torch.dtype, tuple[list[Tensor], LadderRules]] = {}
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

    # --- choosing --------------------------------------------------------------------------------------------------

    def plan(self, A: Tensor, trust: bool = False) -> Plan:
        """Pick a rung for each matrix.

        Args:
            A: shape (batch, n, n).
            trust: never call a matrix outside: what no rung serves gets the last one.
        """
        count, n = A.shape[:2]
        norm = frobenius_norm(A)
        if count == 1:
            return self._plan_of_one(A, norm, trust)
        squares = torch.bmm(A, A) if n >= SQUARE_FIRST_N and count else None
        low, high = (float(x) for x in torch.aminmax(norm)) if count else (0.0, 0.0)
        if not high <= self.radius:  # or NaN: let the sharper bound decide who is outside
            levels = self.ladder.levels(norm := norm_bound(A))
        elif squares is None:
            first, last = self.ladder.level(low), self.ladder.level(high)
            if self.ladder.one_group(first, last, count, n):
                return Plan([(self.ladder.rungs[last], None)], None, self.ladder, count, A.device)
            levels = self.ladder.levels_inside(norm)
        else:
            levels = self.ladder.levels_inside(norm)
        if squares is not None:
            root = frobenius_norm(squares).sqrt()
            levels = torch.minimum(levels, self.ladder.majorant_levels(root, norm))
        return self._grouped(levels, norm, n, squares, trust)

    def _plan_of_one(self, A: Tensor, norm: Tensor, trust: bool) -> Plan:
        """The plan of a single matrix in plain numbers: a tensor operation costs as much as a small product."""
        frobenius, n = float(norm), A.shape[-1]
        squares = torch.bmm(A, A) if n >= SINGLE_SHARPER_N else None
        level = self.ladder.level(frobenius)
        if squares is not None:
            root = math.sqrt(float(torch.linalg.vector_norm(squares)))
            if frobenius <= MAJORANT_RATIO * root:
                level = min(level, bisect_left(self.ladder.majorant_radii, root))
        if level == len(self.ladder.rungs) or (level and n >= SINGLE_SHARPER_N):
            norm = norm_bound(A)
            level = min(level, self.ladder.level(float(norm)))
        if level == len(self.ladder.rungs):
            return self._grouped(self.ladder.levels(norm), norm, n, squares, trust)
        return Plan([(self.ladder.rungs[level], None)], None, self.ladder, 1, A.device, squares=squares)

    def _grouped(self, levels: Tensor, norm: Tensor, n: int, squares: Tensor | None, trust: bool) -> Plan:
        rungs = self.ladder.rungs
        reason = None
        counts = torch.bincount(levels, minlength=len(rungs) + 1).tolist()
        if counts[-1] and trust:
            levels = levels.clamp_max(len(rungs) - 1)
            counts = [*counts[:-2], counts[-2] + counts[-1]]
        elif counts[-1]:
            outside = levels == len(rungs)
            code = torch.where(torch.isfinite(norm), int(Reason.NORM), int(Reason.NOT_FINITE))
            reason = torch.where(outside, code, int(Reason.INSIDE)).to(torch.uint8)
        groups: list[tuple[Rung, Tensor | None]] = []
        merged = self.ladder.group(counts[: len(rungs)], n)
        for first, last in merged:
            if len(merged) == 1 and reason is None:
                rows = None
            else:
                chosen = levels == first if first == last else (levels >= first) & (levels <= last)
                rows = torch.nonzero(chosen)[:, 0]
            groups.append((rungs[last], rows))
        return Plan(groups, None, self.ladder, norm.shape[0], norm.device, reason, squares)

    def outcome(self, A: Tensor, trust: bool = False) -> Plan:
        """What :meth:`run` would report; nothing is computed, except by the Triton kernel, which knows no half way."""
        if triton_route.find(A, self) is not None:
            return self.run(A, trust)[1]
        kernel = compiled.find(A)
        if kernel is not None:
            return self._run_compiled(kernel, A, trust, None)
        plan = self.plan(A, trust)
        plan.squares = None
        return plan

    # --- computing -------------------------------------------------------------------------------------------------

    def run(self, A: Tensor, trust: bool = False) -> tuple[Tensor, Plan]:
        """Exp of the matrices inside; rows outside are left unset and named in ``plan.reason``.

        Args:
            A: shape (batch, n, n), float32/float64/complex64/complex128.
        """
        out = torch.empty(A.shape, dtype=A.dtype, device=A.device)
        if (tiered := self._run_triton(A, trust, out)) is not None:
            return out, tiered
        kernel = compiled.find(A)
        if kernel is not None:
            return out, self._run_compiled(kernel, A, trust, out)
        plan = self.plan(A, trust)
        if A.shape[-1] == 1:
            return A.exp(), plan  # a polynomial loses digits of e^{−|a|} that the scalar function keeps
        for rung, rows in plan.by_group():
            tier = self.tiers[rung.tier]
            weights = tier.packed(A.dtype.to_real(), A.device)
            eager.exponential(A, weights, tier.identity, rung.squarings, out, rows, plan.squares)
        plan.squares = None
        return out, plan

    def _run_compiled(self, kernel: compiled.Kernel, A: Tensor, trust: bool, out: Tensor | None) -> Plan:
        levels, outside = kernel.value(A, self._rungs(A.dtype.to_real()), trust, out)
        reason = self._reason(A, levels) if outside else None
        return Plan(None, levels, self.ladder, A.shape[0], A.device, reason)

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
            reason = self._reason(A, levels)
        count, device = A.shape[0], A.device
        return TieredPlan(
            None, levels, self.ladder, count, device, reason, tiers=self.config["tiers"], got=tuple(got)
        )

    def _reason(self, A: Tensor, levels: Tensor) -> Tensor:
        rows = torch.nonzero(levels == len(self.ladder.rungs))[:, 0]
        finite = torch.isfinite(norm_bound(A[rows]))
        reason = torch.full(levels.shape, int(Reason.INSIDE), dtype=torch.uint8, device=levels.device)
        reason[rows] = torch.where(finite, int(Reason.NORM), int(Reason.NOT_FINITE)).to(torch.uint8)
        return reason

    def _rungs(self, dtype: torch.dtype) -> compiled.Rungs:
        """The ladder for the compiled kernels, made anew after weights were loaded."""
        flat = [tier.flat(dtype) for tier in self.tiers]
        known = self._native.get(dtype)
        if known is None or any(a is not b for a, b in zip(known[0], flat, strict=True)):
            networks = [
                (flat[rung.tier], self.tiers[rung.tier].identity, rung.squarings)
                for rung in self.ladder.rungs
            ]
            radii, majorants = (
                torch.tensor(x, dtype=dtype) for x in (self.ladder.radii, self.ladder.majorant_radii)
            )
            known = flat, compiled.Rungs(radii, majorants, MAJORANT_RATIO, networks)
            self._native[dtype] = known
        return known[1]

    def rules(self, dtype: torch.dtype) -> LadderRules | None:
        """The ladder as plain numbers, its weights rounded to a real dtype; made anew after weights were loaded.

        None where an ``rtol`` was promised: a tier that neighbours share may be squared more than a rung allows.
        """
        if self.rtol < math.inf:
            return None
        flat = [tier.flat(dtype) for tier in self.tiers]
        known = self._plain.get(dtype)
        if known is None or any(a is not b for a, b in zip(known[0], flat, strict=True)):
            weights = [(*row.tolist(), tier.identity) for row, tier in zip(flat, self.tiers, strict=True)]
            rungs, tiers = self.ladder.rungs, self.config["tiers"]
            known = (
                flat,
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
        rungs, floor = self.ladder.rungs, self.ladder.derivative_level
        if A.shape[-1] == 1:
            return A.exp() * E
        out = torch.empty(A.shape, dtype=A.dtype, device=A.device)
        fused = triton_route.find(A, self)
        if fused is not None and fused.frechet(A, E, out):
            return out
        plan = plan or self.outcome(A, trust=True)
        kernel = compiled.find(A)
        if kernel is not None and compiled.readable(E):
            levels = plan.by_row().clamp_min(floor)
            kernel.frechet(A, E, self._rungs(A.dtype.to_real()), levels, out)
            return out
        for rung, rows in plan.by_group():
            rung = rungs[max(rungs.index(rung), floor)]
            tier = self.tiers[rung.tier]
            weights = tier.packed(A.dtype.to_real(), A.device)
            eager.exponential_frechet(A, E, weights, tier.identity, rung.squarings, out, rows)
        return out

    def program(self) -> triton_route.Traced:
        """For tracing: the deepest tier and all squarings as plain numbers, or the Triton kernel as an operator."""
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
        """exp(A), shape (*, n, n)."""
        if torch.compiler.is_compiling():
            return self.program()(A)
        return matrix_function(A, Trusted(self))


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
    return result.eval().requires_grad_(False)


class Trusted:
    """Evaluator of a network that takes every matrix for inside."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def value(self, A: Tensor) -> Tensor:
        if not A.numel():
            return A.clone()
        with full_precision(A):
            return self.network.run(A.reshape(-1, *A.shape[-2:]), trust=True)[0].reshape(A.shape)

    def frechet(self, A: Tensor, E: Tensor) -> Tensor:
        flat = A.reshape(-1, *A.shape[-2:])
        with full_precision(A):
            return self.network.run_frechet(flat, E.reshape(flat.shape), None).reshape(A.shape)

    def renewed(self) -> Trusted:
        return self
