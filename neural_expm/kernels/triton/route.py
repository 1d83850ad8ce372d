"""Whether a Triton kernel answers: only when asked for, on a CUDA device, and once it has agreed with the eager kernel.

The environment variable NEURAL_EXPM_TRITON=1 asks.  The default is not to, because the kernels have been run in
Triton's interpreter and compiled for a GPU, but never on one.  For each function, n, dtype, device and network the
first call compares value and derivative of a small batch with the eager kernel.  Whatever goes wrong (no Triton, a GPU
too old for it, a launch that fails, numbers that differ) is logged once, and the eager kernel answers.

Imports triton only when asked.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

from ..calling import BOUND, CHECK, readable
from ..compiled import DTYPES
from ..rules import Rules, numbers
from ..tracing import constant_in_traces

log = logging.getLogger("neural_expm")

# Where the kernels run; the tests add the CPU, which Triton's interpreter serves.
DEVICES = ("cuda",)
LARGEST_N = 32
# exp of a number is for torch.exp: a polynomial loses digits of e^{−|a|}.
LEAST_N = {"expm": 2, "sign": 1, "sqrtm": 1}
# Two kernels may use different tiers, and derivatives err by more than their ε (``ladder.DERIVATIVE_FACTOR``).
BOUNDS = 64.0

Key = tuple[str, int, torch.dtype, torch.device, Rules]


class Computing(Protocol):
    """What is asked of a network."""

    @property
    def function(self) -> str:
        """Of ``LEAST_N``."""

    def rules(self, dtype: torch.dtype) -> Rules | None:
        """The network as plain numbers for a real dtype; None where the kernels must not answer."""

    def run(self, A: Tensor, trust: bool = False) -> tuple[Tensor, Any]:
        """The values and the outcome."""

    def run_frechet(self, A: Tensor, E: Tensor, outcome: Any, /) -> Tensor:
        """L(A, E) for an outcome, None to trust every matrix."""


class Kernel:
    """The kernels of one function, n, dtype, device and network; a failing one gives up and says so.

    Raises:
        ImportError: no Triton.
    """

    name = "triton"

    def __init__(self, key: Key) -> None:
        from .operators import OPERATORS

        function, _, dtype, device, rules = self.key = key
        self.operator = OPERATORS[function]
        self.table = self.operator.table(numbers(rules), dtype.to_real(), device)

    def value(self, A: Tensor, out: Tensor) -> tuple[Tensor, ...] | None:
        """Out ← f(A), shape (batch, n, n); the notes of the kernel, None if it failed."""
        return self._try(lambda: tuple(self.operator.compute(A, self.table, out)))

    def frechet(self, A: Tensor, E: Tensor, out: Tensor) -> bool:
        """Out ← L(A, E); whether that was done."""
        if not readable(E):
            return False
        return bool(self._try(lambda: self.operator.derive(A, E, self.table, out) or True))

    def _try(self, compute: Callable[[], Any]) -> Any:
        try:
            return compute()
        except Exception as error:
            # Whatever it is, it must not reach a caller who asked for a matrix function.
            _give_up(self.key, error)
            return None


_kernels: dict[Key, Kernel | None] = {}
_logged = False
# What ``find`` answers without looking, while a kernel is being checked: that kernel, or none.
_answer: ContextVar[tuple[Kernel | None] | None] = ContextVar("answer", default=None)


def wanted() -> bool:
    """Whether the user asked for the Triton kernels."""
    return os.environ.get("NEURAL_EXPM_TRITON", "0") == "1"


def find(A: Tensor, network: Computing) -> Kernel | None:
    """The kernel for a batch of shape (batch, n, n), if there is one."""
    if A.device.type not in DEVICES:
        return None
    if (answer := _answer.get()) is not None:
        return answer[0]
    if not readable(A) or torch.compiler.is_compiling():
        return None
    return lookup(network, A.shape[-1], A.dtype, A.device)


def lookup(network: Computing, n: int, dtype: torch.dtype, device: torch.device) -> Kernel | None:
    """:func:`find` for any batch of such matrices."""
    if not wanted() or not LEAST_N[network.function] <= n <= LARGEST_N or dtype not in DTYPES:
        return None
    rules = network.rules(dtype.to_real())
    if rules is None:
        return None
    key = network.function, n, dtype, device, rules
    if key not in _kernels:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None  # a check would break the capture
        _check(key, network)
    return _kernels[key]


def _check(key: Key, network: Computing) -> None:
    try:
        kernel = _kernels[key] = Kernel(key)
        error, allowed = discrepancy(kernel, network)
        if not error <= allowed:
            _give_up(key, f"it computes wrongly (relative error {error:.1e})")
    except Exception as error:  # as in ``Kernel._try``
        _give_up(key, error)


def discrepancy(kernel: Kernel, network: Computing) -> tuple[float, float]:
    """Largest relative difference from the eager kernel over a small batch with a fixed seed, and what is allowed.

    The difference is infinite where a matrix that is well inside was refused, or the kernel did not answer.
    """
    function, n, dtype, device, _ = kernel.key
    A, E = (X.to(device) for X in samples(function, n, dtype))
    results = []
    with torch.no_grad():
        for answer in (kernel, None):
            with _answering(answer):
                # The adjoint, so that strides and lazy conjugation are checked too.
                value, outcome = network.run(A.mH)
                results.append((value, network.run_frechet(A.mH, E, outcome), outcome))
    (*got, ours), (*expected, _) = results
    refused = ours.kernel != kernel.name or ours.reason is not None
    worst = max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(got, expected, strict=True))
    allowed = CHECK[dtype.to_real()] + BOUNDS * float(ours.describe()["bound"].max())
    return (float("inf") if refused else worst), allowed


def samples(function: str, n: int, dtype: torch.dtype, count: int = 19) -> tuple[Tensor, Tensor]:
    """Well-conditioned matrices of shape (count, n, n), every other one Hermitian, and directions."""
    generator = torch.Generator().manual_seed(n)
    A, E = torch.randn(2, count, n, n, dtype=dtype, generator=generator) / n
    if function == "expm":
        A = A * torch.logspace(-2, 0.5, count, dtype=dtype.to_real())[:, None, None]
    else:
        spectrum = 0.5 + torch.rand(count, n, dtype=dtype.to_real(), generator=generator)
        if function == "sign":
            spectrum[:, ::2] *= -1
        A = 0.1 * A + torch.diag_embed(spectrum)
    A[::2] = (A[::2] + A[::2].mH) / 2
    return A, E


@contextmanager
def _answering(kernel: Kernel | None) -> Iterator[None]:
    token = _answer.set((kernel,))
    try:
        yield
    finally:
        _answer.reset(token)


def _give_up(key: Key, error: Exception | str) -> None:
    global _logged
    _kernels[key] = None
    if not _logged:
        function, n, dtype, device, _ = key
        log.warning(
            "no Triton kernel of %s for n = %d, %s on %s: %s; the eager kernel answers",
            *(function, n, dtype, device, error),
        )
        _logged = True


def state() -> dict[tuple[str, int, torch.dtype, torch.device], str]:
    """Of each (function, n, dtype, device) asked for so far: ``"ready"`` or ``"failed"``."""
    return {key[:4]: "failed" if kernel is None else "ready" for key, kernel in list(_kernels.items())}


def forget() -> None:
    """Start anew, as a fresh process would."""
    global _logged
    _kernels.clear()
    BOUND.clear()
    _logged = False


# --- under a tracer ---------------------------------------------------------------------------------------------------


class Traced:
    """What a tracer sees of a network: an operator where a Triton kernel answers, elsewhere plain torch operations.

    Args:
        network: that the kernel stands in for.
        program: the function in plain torch operations.
    """

    def __init__(self, network: Computing, program: Callable[[Tensor], Tensor]) -> None:
        self.network, self.program = network, program
        rules = {dtype: network.rules(dtype.to_real()) for dtype in DTYPES}
        self.numbers = {dtype: numbers(known) for dtype, known in rules.items() if known is not None}

    def __call__(self, A: Tensor) -> Tensor:
        """f(A), shape (*, n, n)."""
        if A.device.type in DEVICES and wanted():
            for n in range(1, LARGEST_N + 1):  # a tracer may know the size as a symbol: settle its number
                if A.shape[-1] == n and (found := self.parameters(n, A.dtype, A.device)):
                    return getattr(torch.ops.neural_expm, self.network.function)(A, *found)[0]
        return self.program(A)

    @constant_in_traces
    def parameters(self, n: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...] | None:
        """Of the operator, if the kernel for such matrices is there, checking it if need be."""
        return self.numbers[dtype] if lookup(self.network, n, dtype, device) else None
