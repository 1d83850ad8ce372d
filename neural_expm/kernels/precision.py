"""Single precision means single: no TF32 and no bfloat16 inside the products, whatever a program lets its layers do.

``torch.set_float32_matmul_precision("high")`` lets a GPU round the factors of a product to 11 bits.  That is a choice
for layers; a matrix function would be wrong in its fourth digit, with a certificate that says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

ROUNDED = (torch.float32, torch.complex64)
# Half precisions are computed in single: torch's own half arithmetic would lose digits in every product.
HALF = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


_NOTHING = nullcontext()


def full_precision(A: Tensor) -> AbstractContextManager[None]:
    """Products of matrices like A in their own precision; the choice of the program is put back afterwards.

    It is a choice for the whole process, so that another thread may meanwhile compute more precisely than it asked.
    """
    if A.dtype not in ROUNDED:
        return _NOTHING
    backend, name, exact = _choice(A.is_cuda)
    chosen = getattr(backend, name, exact)
    return _NOTHING if chosen in (exact, "none") else _set(backend, name, exact)


@cache
def _choice(cuda: bool) -> tuple[Any, str, str | bool]:
    """Where the choice is made, its name, and what keeps the precision."""
    backend = (torch.backends.cuda if cuda else torch.backends.mkldnn).matmul
    # torch < 2.9 knows only the choice for CUDA, as a truth value.
    return (
        (backend, "fp32_precision", "ieee")
        if hasattr(backend, "fp32_precision")
        else (backend, "allow_tf32", False)
    )


@contextmanager
def _set(backend: Any, name: str, value: Any) -> Iterator[None]:
    chosen = getattr(backend, name)
    setattr(backend, name, value)
    try:
        yield
    finally:
        setattr(backend, name, chosen)
