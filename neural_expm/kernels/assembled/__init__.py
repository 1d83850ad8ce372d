"""Machine code that needs no compiler: written in milliseconds, in memory, for x86-64 with AVX2 or AVX-512.

``eager`` answers where there is none: on another processor, under a system that allows no new code, where the check of
fresh code fails, or under NEURAL_EXPM_ASSEMBLE=0, for shapes first met then.  The reason is logged once.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor

from ..calling import BOUND, readable
from .composition import RootKernel, SignKernel
from .exponential import Kernel
from .kernel import AssembledKernel
from .memory import Unavailable, wide
from .newton import NewtonKernel

__all__ = ["KINDS", "Kernel", "Unavailable", "failure", "find", "forget", "settled", "state", "wide"]

log = logging.getLogger("neural_expm")

KINDS: dict[str, type[AssembledKernel]] = {
    "expm": Kernel,
    "sign": SignKernel,
    "sqrtm": RootKernel,
    "newton": NewtonKernel,
}
# Matrices that fill the lanes; of fewer, and larger than ``at_once_n``, code is written when it has been asked for so
# often: that takes as long as hundreds of calls without.
FEW, WORTH_CALLS = 16, 16

Key = tuple[str, int, torch.dtype]
_kernels: dict[Key, AssembledKernel | None] = {}
_calls: dict[Key, int] = {}  # on few matrices, of those without a kernel yet
_failure = ""  # the first one, in words; logged once


def find(A: Tensor, kind: str = "expm") -> Any:
    """The kernel of KINDS for a batch of shape (batch, n, n), None if there is none."""
    count, n, _ = A.shape
    key = kind, n, A.dtype
    if (
        _kernels.get(key, True) is None
    ):  # the first question, since where there is none all others are for nothing
        return None
    made = KINDS[kind]
    worthwhile = made.worthwhile(n, count, A.is_complex())
    if not worthwhile or not A.is_cpu or not readable(A) or torch.compiler.is_compiling():
        return None
    if key not in _kernels:
        if n > made.at_once_n and count < FEW:
            _calls[key] = _calls.get(key, 0) + 1
            if _calls[key] < WORTH_CALLS:
                return None
        _kernels[key] = _make(*key)
    return _kernels[key]


def settled(kind: str, n: int, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for such matrices, or will be none."""
    return n < 2 or n > KINDS[kind].largest_n or (kind, n, dtype) in _kernels


def _make(kind: str, n: int, dtype: torch.dtype) -> AssembledKernel | None:
    global _failure
    if os.environ.get("NEURAL_EXPM_ASSEMBLE", "1").lower() in ("0", "never", "off"):
        return None
    try:
        return KINDS[kind](n, dtype)
    except Exception as error:
        # Whatever it is, it must not reach a caller who asked for a function of a matrix.
        if not _failure:
            _failure = f"no assembled kernel of {kind} for n = {n}, {dtype}: {error}"
            # Another processor is ordinary; anything else the user may want to know.
            level = logging.INFO if "assembler" in str(error) else logging.WARNING
            log.log(level, "%s; another kernel answers", _failure)
        return None


def failure() -> str:
    """Why an assembled kernel could not be had, in words; empty where none has failed."""
    return _failure


def state() -> dict[Key, str]:
    """Of each (kind, n, dtype) asked for: ``"ready"`` or ``"none"``."""
    return {key: "none" if kernel is None else "ready" for key, kernel in list(_kernels.items())}


def forget() -> None:
    """Start anew, as a fresh process would."""
    global _failure
    _kernels.clear()
    _calls.clear()
    _failure = ""
    BOUND.clear()
