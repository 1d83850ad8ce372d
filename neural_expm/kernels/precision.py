"""Single precision means single: no TF32 and no bfloat16 inside the products, whatever a program lets its layers do.

``torch.set_float32_matmul_precision("high")`` lets a GPU round the factors of a product to 11 bits.  That is a choice
for layers; a matrix function would be wrong in its fourth digit, with a certificate that says otherwise.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager, nullcontext
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
    choice = _choice(A.is_cuda)
    return _NOTHING if choice.keeps() else choice


class _Choice:
    """What a program lets products do, set aside while any thread is in need of all digits.

    Args:
        backend, name: where it is made, an attribute.
        exact: what keeps the precision.
    """

    def __init__(self, backend: Any, name: str, exact: str | bool) -> None:
        self.backend, self.name, self.exact = backend, name, exact
        # By ``getattr`` torch's own would be found only after an exception, which takes longer than a small product.
        self.read = getattr(backend, "__getattr__", partial(getattr, backend))
        self.made: str | bool = exact
        self.forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """That any other thread is here: a child after a fork has none of them."""
        # A signal handler may come in between, in the same thread.
        self.lock, self.users = threading.RLock(), 0

    def keeps(self) -> bool:
        """Whether the program itself has chosen all digits."""
        with self.lock:
            return not self.users and self.read(self.name) in (self.exact, "none")

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                self.made = self.read(self.name)
            self.users += 1
            setattr(self.backend, self.name, self.exact)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                setattr(self.backend, self.name, self.made)


@cache
def _choice(cuda: bool) -> _Choice:
    backend = (torch.backends.cuda if cuda else torch.backends.mkldnn).matmul
    if hasattr(backend, "fp32_precision"):
        return _Choice(backend, "fp32_precision", "ieee")
    # torch < 2.9 knows only the choice for CUDA, as a truth value.
    return _Choice(backend, "allow_tf32", False) if cuda else _Choice(_Unknown(), "allow_tf32", False)


class _Unknown:
    """Where no choice is known."""

    allow_tf32 = False
