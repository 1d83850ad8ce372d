"""The public functions.  The route, top to bottom: validate → choose a network → its domain check, the network, the
exact algorithm for the rows outside → report.  Plain matrices may take a shortcut to the same answer.
"""

from __future__ import annotations

import os
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from . import hub, shortcut, validate
from .checkpoints import load_record, unchanged, untraced
from .differentiation import matrix_function, under_transform
from .errors import InputError, UnknownModelError
from .kernels.tracing import constant_in_traces, untraceable
from .manifest import FUNCTIONS, Checkpoint, find, full_name, list_models, shipped
from .networks.protocols import Traceable
from .report import Report
from .route import Route, make_report
from .surrogate import Surrogate, cheaper_surrogate, through_network

if TYPE_CHECKING:
    from .networks.exponential import EquivariantExponential


def expm(
    A: Tensor,
    *,
    model: str | os.PathLike[str] | Checkpoint | nn.Module | None = None,
    rtol: float | None = None,
    outside: str = "exact",
    grad: str = "exact",
    return_report: bool = False,
) -> Tensor | tuple[Tensor, Report]:
    r"""Matrix exponential :math:`e^A`, differentiable to every order.

    Args:
        A: shape (\*, n, n); float16, bfloat16, float32, float64, complex64 or complex128; any strides.
        model: a checkpoint by name, folder, Hub id, record or loaded module; None for the default of the dtype.
        rtol: answer with the cheapest network whose promised relative error, before rounding, is at most this; not
            beside ``model``.
        outside: for a matrix outside the network's domain, ``"exact"`` (``torch.linalg.matrix_exp``), ``"raise"``,
            ``"nan"``, or ``"trust"`` (no check, no promise; works under ``torch.compile(fullgraph=True)`` and
            ``torch.export``).
        grad: the derivative of a network whose bound is statistical: ``"exact"`` is the Fréchet derivative of the
            function, through the default network; ``"network"`` is that of the network itself. The default
            networks have only the former.
        return_report: also return a :class:`~neural_expm.report.Report`.

    Returns:
        :math:`e^A`, same shape, dtype and device; NaN for a matrix with NaN or infinite entries (but the scalar
        :math:`e^{\pm\infty}` for n = 1).

    Raises:
        InputTypeError, InputError: A is not a dense floating or complex tensor of square matrices with values; or an
            option is not one of those above.
        OutsideDomainError: ``outside="raise"`` and a matrix is outside.
        UnknownModelError: no such checkpoint.

    Error: ‖result − e^A‖₂ ≤ bound · ‖e^A‖₂ before rounding, with the bound of the report (``certificate.py``; Higham,
    *Functions of Matrices*, section 4.8).  Classical equivalent: ``torch.linalg.matrix_exp``, ``scipy.linalg.expm``.
    """
    if model is None and rtol is None and outside == "exact" and grad == "exact" and not return_report:
        result = shortcut.exponential(A, _default_exponential)
        if result is not None:
            return result
    return _apply("expm", A, model, rtol, outside, grad, return_report)


def sign(
    A: Tensor,
    *,
    model: str | os.PathLike[str] | Checkpoint | nn.Module | None = None,
    rtol: float | None = None,
    outside: str = "exact",
    grad: str = "exact",
    return_report: bool = False,
) -> Tensor | tuple[Tensor, Report]:
    r"""Matrix sign function: eigenvalues with Re λ > 0 go to 1, those with Re λ < 0 to −1.

    Args:
        A: shape (\*, n, n), as for :func:`expm`.
        model, rtol, outside, grad, return_report: as for :func:`expm`; the exact algorithm is scaled Newton with a
            Schur–Parlett rescue, asked only after a few steps of it have not brought the matrix within reach of the
            network (``refused.py``).

    Returns:
        sign(A), same shape, dtype and device.

    Raises:
        UndefinedFunctionError: an eigenvalue lies on the imaginary axis (names the batch index); NaN under
            ``outside="nan"``.
        InputTypeError, InputError, OutsideDomainError, UnknownModelError: as for :func:`expm`.

    Error: ‖result − sign(A)‖ ≤ (1 − √(1 − η))‖sign(A)‖ with the residual η = ‖result² − I‖, sound because every stage
    is shown to keep the half-planes (``networks/composition.py``).  Classical equivalent: ``scipy.linalg.signm``;
    Higham, *Functions of Matrices*, chapter 5.
    """
    return _apply("sign", A, model, rtol, outside, grad, return_report)


def sqrtm(
    A: Tensor,
    *,
    model: str | os.PathLike[str] | Checkpoint | nn.Module | None = None,
    rtol: float | None = None,
    outside: str = "exact",
    grad: str = "exact",
    return_report: bool = False,
) -> Tensor | tuple[Tensor, Report]:
    r"""Principal square root: the X with X² = A whose eigenvalues lie in the open right half-plane.

    Args:
        A: shape (\*, n, n), as for :func:`expm`.
        model, rtol, outside, grad, return_report: as for :func:`expm`; the exact algorithm is the product form of
            Denman–Beavers with a Schur rescue.

    Returns:
        :math:`A^{1/2}`, same shape, dtype and device.  A singular Hermitian semidefinite matrix has a root too (its
        gradient is not finite).

    Raises:
        UndefinedFunctionError: an eigenvalue lies on the negative real axis (names the batch index); NaN under
            ``outside="nan"``.
        InputTypeError, InputError, OutsideDomainError, UnknownModelError: as for :func:`expm`.

    Error: as for :func:`sign`, of which it is the coupled form (Higham, *Functions of Matrices*, (5.4) and chapter 6).
    Classical equivalent: ``scipy.linalg.sqrtm``.
    """
    return _apply("sqrtm", A, model, rtol, outside, grad, return_report)


def explain(
    function: str,
    A: Tensor,
    *,
    model: str | os.PathLike[str] | Checkpoint | nn.Module | None = None,
    rtol: float | None = None,
    outside: str = "exact",
) -> Report:
    """The report of a call, without computing the function.

    Where the certificate is checked at run time (sign, sqrtm) the check itself is run; its value is thrown away.

    Raises:
        As the function itself does for bad input.
    """
    if function not in FUNCTIONS:
        raise InputError(
            f"explain: no matrix function {function!r}; expected one of {', '.join(map(repr, FUNCTIONS))}"
        )
    network, name, kind = _choose(function, validate.matrix(A, function), model, rtol, outside, True)
    B = A.detach().to(validate.working_dtype(function, A.dtype))
    outcome = network.outcome(B.reshape(-1, *A.shape[-2:]), outside == "trust") if B.numel() else None
    return make_report(function, outcome, name, kind, A.shape[:-2], outside)


def load(
    name: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> nn.Module:
    """A pretrained network, a copy: an ``nn.Module`` on the CPU, in eval mode; gradients flow to A, not to the weights.

    Args:
        name: a shipped name, a folder, or a Hub id (``"org/name"``, ``"org/name@revision"``), tried in this order.
            ``"expm-equivariant"`` means the one of a dtype.
        dtype: which precision such a short name means; None for ``torch.get_default_dtype()``.
        revision: of a Hub repository: branch, tag or commit.
        token: for private repositories; None for ``HF_TOKEN`` or ``hf auth login``, False for none.
        cache_dir: of the Hub's files; None for the one in ``HF_HOME``.
        endpoint: of the Hub; None for ``HF_ENDPOINT``.
        local_files_only: make no request; always so under ``HF_HUB_OFFLINE=1``.
        force_download: fetch again what the cache has.

    Returns:
        The network; its attribute ``checkpoint`` is the record of what was loaded.

    Raises:
        UnknownModelError: no such checkpoint, repository or revision; the message lists those that exist.
        CheckpointError: its weights are missing, damaged, tampered with, or do not prove a bound called certified.
        HubError: the Hub cannot be reached, or refuses.
        InputError: the string is neither a name nor a folder nor a Hub id; or a revision of what ships was asked for.
    """
    return hub.load(
        full_name(name, dtype or torch.get_default_dtype()),
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        endpoint=endpoint,
        local_files_only=local_files_only,
        force_download=force_download,
    )


# --- the route --------------------------------------------------------------------------------------------------------


def _apply(
    function: str, A: Tensor, model: Any, rtol: float | None, outside: str, grad: str, return_report: bool
) -> Tensor | tuple[Tensor, Report]:
    validate.matrix(A, function)
    validate.gradient(function, grad)
    if torch._C._get_tracing_state() is not None:
        raise InputError(
            f"{function}: torch.jit.trace would record what suits the norms of one input; "
            "use torch.compile or torch.export with outside='trust'"
        )
    B = _in_dtype(A, validate.working_dtype(function, A.dtype))
    if torch.compiler.is_compiling() and outside == "trust":
        if return_report:
            raise InputError(
                f"{function}: return_report=True needs concrete values; call it outside torch.compile"
            )
        if isinstance(model, nn.Module):
            return model(B).to(A.dtype)
        name = _prepare_program(function, model, rtol, validate.real_dtype(B.dtype))
        return getattr(_programs, name)(B).to(A.dtype)
    if torch.compiler.is_compiling():
        if getattr(torch.compiler, "is_exporting", bool)():  # torch 2.7
            raise InputError(f"{function}: {UNTRACEABLE}")
        return _untraced(function, A, B, model, rtol, outside, grad, return_report)
    return _routed(function, A, B, model, rtol, outside, grad, return_report)


def _routed(
    function: str,
    A: Tensor,
    B: Tensor,
    model: Any,
    rtol: float | None,
    outside: str,
    grad: str,
    return_report: bool,
) -> Tensor | tuple[Tensor, Report]:
    """The call for B, which is A in the dtype that is computed in."""
    network, name, kind = _choose(function, A, model, rtol, outside, return_report)
    route = Route(function, network, outside)
    if B.requires_grad or under_transform() or _has_tangent(B):
        through = grad == "network" and isinstance(network, Surrogate)
        result = through_network(B, route) if through else matrix_function(B, route)
    else:
        result = route.value(B)
    result = _in_dtype(result, A.dtype)
    return (result, route.report(name, kind, A.shape[:-2])) if return_report else result


UNTRACEABLE = (
    "a graph cannot hold the choice of a network for each matrix by its norm; pass outside='trust' for the deepest "
    "network alone, which answers NaN beyond its radius"
)


@untraceable(UNTRACEABLE)
def _untraced(*arguments: Any) -> Any:
    return torch.compiler.disable(_routed)(*arguments)  # here, since it imports the whole compiler


def _in_dtype(A: Tensor, dtype: torch.dtype) -> Tensor:
    return A if A.dtype == dtype else A.to(dtype)  # asking costs a twentieth of a microsecond, converting one


def _has_tangent(A: Tensor) -> bool:
    return (
        torch.autograd.forward_ad._current_level >= 0
        and torch.autograd.forward_ad.unpack_dual(A).tangent is not None
    )


def _choose(
    function: str, A: Tensor, model: Any, rtol: float | None, outside: str, reported: bool
) -> tuple[Traceable, str, str]:
    """The network of a call, its name, and the kind of its bound, as far as somebody will hear of it."""
    validate.options(function, rtol, outside)
    if model is not None and rtol is not None:
        raise InputError(
            f"{function}: rtol={rtol!r} chooses a network, and model= names one; give one of them (its bound is in "
            "the report)"
        )
    if isinstance(model, nn.Module):
        record = getattr(model, "checkpoint", None)
        if isinstance(model, Traceable):
            return model, type(model).__name__, _kind(model, record, reported)
        if record is None:
            raise InputError(
                f"{function}: a {type(model).__name__} made by hand does not know its domain; call the module "
                "itself, or pass model= the name or record of a checkpoint"
            )
        return _surrogate(record, model), record.name, _kind(model, record, reported)
    if isinstance(model, Checkpoint):
        return _network(model), model.name, model.bound_kind
    if model is None and rtol is not None and (cheaper := cheaper_surrogate(function, A, rtol)):
        return _network(cheaper), cheaper.name, cheaper.bound_kind
    return _found(function, model, rtol, validate.real_dtype(validate.working_dtype(function, A.dtype)))


# What a tracer sees of a network by name: plain numbers, read when a trace first asks for them.  Attributes and not the
# entries of a dict, which a tracer looks at once, before a second function of the same trace has put its own there.
_programs = SimpleNamespace()
_names: dict[tuple[str, str | os.PathLike[str] | None, float | None, torch.dtype], str] = {}


@constant_in_traces  # instead of following the reading of files
def _prepare_program(
    function: str, model: str | os.PathLike[str] | None, rtol: float | None, dtype: torch.dtype
) -> str:
    name = _names.setdefault((function, model, rtol, dtype), f"program{len(_names)}")
    with untraced():
        setattr(_programs, name, _found(function, model, rtol, dtype)[0].program())
    return name


def _found(
    function: str, model: str | os.PathLike[str] | None, rtol: float | None, dtype: torch.dtype
) -> tuple[Traceable, str, str]:
    name = model if model is None else full_name(model, dtype)
    if name is None or name in shipped():
        return _shipped(function, name, rtol, dtype)
    network, _, kind = _of_record(function, hub.resolve(name, refresh=False))
    return (
        network,
        str(name),
        kind,
    )  # as the user called it: a foreign record may bear the name of a shipped one


def _kind(model: nn.Module, record: Checkpoint | None, reported: bool) -> str:
    """The kind of bound of a module that may be anyone's; comparing all weights takes longer than a small matrix."""
    return record.bound_kind if record is not None and reported and unchanged(model, record) else "unproven"


@lru_cache(maxsize=128)
def _shipped(
    function: str, name: str | None, rtol: float | None, dtype: torch.dtype
) -> tuple[Traceable, str, str]:
    if name is None and rtol is not None and function == "expm":
        from .networks.exponential import merged

        names = [f"expm-equivariant-{tier}" for tier in ("bfloat16", "float32", "float64")]
        return merged([_equivariant(name) for name in names], rtol), "expm-equivariant", "certified"
    return _of_record(function, find(name or full_name(f"{function}-equivariant", dtype)))


def _of_record(function: str, record: Checkpoint) -> tuple[Traceable, str, str]:
    if record.function != function:
        raise UnknownModelError(
            f"{function}: checkpoint {record.name!r} computes {record.function}; "
            f"choose one of {', '.join(r.name for r in list_models(function))}"
        )
    return _network(record), record.name, record.bound_kind


def _network(record: Checkpoint) -> Traceable:
    """The network of a record; one without a proof gets the domain check and the exact derivative around it."""
    network = load_record(record)
    if isinstance(network, Traceable):
        return network
    return _surrogate(record, network)


def _surrogate(record: Checkpoint, network: nn.Module) -> Surrogate:
    return Surrogate(record, network, lambda dtype: _shipped(record.function, None, None, dtype)[0])


def _default_exponential(dtype: torch.dtype) -> EquivariantExponential:
    return cast("EquivariantExponential", _shipped("expm", None, None, dtype)[0])


def _equivariant(name: str) -> EquivariantExponential:
    # With it come the kernels: the first call pays for them, not the import of the package.
    from .networks.exponential import EquivariantExponential

    network = load_record(find(name))
    assert isinstance(network, EquivariantExponential)
    return network
