"""Single precision means single: no TF32 and no bfloat16 inside the products, whatever a program lets its layers do.

``torch.set_float32_matmul_precision("high")`` lets a GPU round the factors of a product to 11 bits.  That is a choice
for layers; a matrix function would be wrong in its fourth digit, with a certificate that says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
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
    backend, name, exact, read = _choice(A.is_cuda)
    return _NOTHING if read(name) in (exact, "none") else _set(backend, name, exact)


@cache
def _choice(cuda: bool) -> tuple[Any, str, str | bool, Callable[[str], Any]]:
    """Where the choice is made, its name, what keeps the precision, and how it is read."""
    backend = (torch.backends.cuda if cuda else torch.backends.mkldnn).matmul
    if hasattr(backend, "fp32_precision"):
        # By ``getattr`` it would be found only after an exception, which takes longer than a small product.
        return backend, "fp32_precision", "ieee", getattr(backend, "__getattr__", partial(getattr, backend))
    # torch < 2.9 knows only the choice for CUDA, as a truth value.
    return backend, "allow_tf32", False, lambda name: getattr(backend, name, False)


@contextmanager
def _set(backend: Any, name: str, value: Any) -> Iterator[None]:
    chosen = getattr(backend, name)
    setattr(backend, name, value)
    try:
        yield
    finally:
        setattr(backend, name, chosen)
