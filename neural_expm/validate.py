"""What an input must be, and the errors that say so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import InputError, InputTypeError
from .kernels.calling import FIELDS
from .kernels.precision import HALF

# sign loses ‖A‖/min|Re λ| in any iteration that begins by adding and multiplying at the scale of ‖A‖; double has them
# to spare, so that single-precision input gets a single-precision answer.
DOUBLE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
OUTSIDE = ("exact", "raise", "nan", "trust")
GRADIENTS = ("exact", "network")


def matrix(A: Any, function: str) -> Tensor:
    """Check one input of a public function.

    Args:
        A: expected a dense tensor of shape (*, n, n), float16/bfloat16/float32/float64/complex64/complex128.

    Raises:
        InputTypeError: not a tensor, sparse or quantised, of another dtype, or on the meta device.
        InputError: fewer than two dimensions, or the last two differ.
    """
    if not isinstance(A, Tensor):
        raise InputTypeError(
            f"{function}: expected a torch.Tensor, got {type(A).__name__}; convert with torch.as_tensor(A)"
        )
    if A.layout != torch.strided:
        raise InputTypeError(
            f"{function}: expected a dense tensor, got layout {A.layout}; convert with A.to_dense()"
        )
    if A.dtype not in FIELDS and A.dtype not in HALF:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in (*HALF, *FIELDS))
        target = "torch.complex64" if A.dtype.is_complex else "torch.float64"
        raise InputTypeError(
            f"{function}: expected one of {known}, got {A.dtype}; convert with A.to({target})"
        )
    if A.is_meta:
        raise InputTypeError(
            f"{function}: expected a tensor with values, got one on the meta device, and which network answers depends "
            "on them; use torch.empty_like(A) where only the shape matters"
        )
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise InputError(
            f"{function}: expected square matrices of shape (*, n, n), got shape {tuple(A.shape)}; "
            "the last two dimensions must be equal"
        )
    return A


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the real part."""
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)


def working_dtype(function: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype that a function computes in, for input of ``dtype``."""
    return (DOUBLE if function == "sign" else HALF).get(dtype, dtype)


def options(function: str, rtol: float | None, outside: str) -> None:
    """Check the options of a public function.

    Raises:
        InputError: ``outside`` is not one of its four values, or ``rtol`` is not positive.
    """
    if outside not in OUTSIDE:
        raise InputError(f"{function}: outside={outside!r}, expected one of {', '.join(map(repr, OUTSIDE))}")
    if rtol is not None and not (isinstance(rtol, (int, float)) and 0 < rtol < 1):
        raise InputError(f"{function}: rtol={rtol!r}, expected a relative error between 0 and 1")


def gradient(function: str, grad: str) -> None:
    """Check the choice of a derivative.

    Raises:
        InputError: ``grad`` is neither ``"exact"`` nor ``"network"``.
    """
    if grad not in GRADIENTS:
        raise InputError(f"{function}: grad={grad!r}, expected one of {', '.join(map(repr, GRADIENTS))}")
