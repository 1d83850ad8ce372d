"""Which native kernel answers for a batch: the compiled one, else the assembled one; or the faster one of both."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import assembled, compiled
from .compiled.exponential import ROW_BYTES

# From so many matrices on an assembled exponential is as fast as a compiled one or faster, where both hold an entry of
# many matrices in a register; a call of it costs three microseconds more.
MANY = 256
# Multiply-adds of one product of all matrices from which on an assembled sign or square root is the faster one: more of
# it is done in Python, whatever the number of matrices.
MUCH = 1 << 20


def find(A: Tensor, kind: str) -> Any:
    """The kernel of ``"expm"``, ``"sign"`` or ``"sqrtm"`` for a batch of shape (batch, n, n), None if there is none.

    Asking counts towards compiling one, unless it would not be used.
    """
    return _preferred(A, kind) or compiled.find(A, kind) or assembled.find(A, kind)


def ready(A: Tensor, kind: str) -> Any:
    """As :func:`find`, for a caller who asks that where there is none: such a question does not count."""
    kernel = _preferred(A, kind) or compiled.ready(kind, A.shape[-1], A.dtype)
    if kernel is None and (kernel := assembled.find(A, kind)) is not None:
        compiled.find(A, kind)
    return kernel


def settled(A: Tensor, kind: str) -> bool:
    """Whether one kernel answers for all such batches from now on, or none."""
    (count, n, _), dtype = A.shape, A.dtype
    if _preferred(A, kind) is not None or compiled.ready(kind, n, dtype) is not None:
        return True
    return compiled.settled(kind, count, n, dtype) and assembled.settled(kind, n, dtype)


def _preferred(A: Tensor, kind: str) -> Any:
    """The assembled kernel where it comes before a compiled one."""
    count, n, _ = A.shape
    if kind == "expm":
        first = count >= MANY and n * A.dtype.to_real().itemsize < ROW_BYTES
    else:
        first = count * n**3 * (4 if A.is_complex() else 1) >= MUCH
    return assembled.find(A, kind) if first else None
