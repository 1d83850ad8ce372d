"""A few plain matrices straight to the compiled kernel: the answer of the route, without its questions.

A program that calls ``expm`` on one small matrix thousands of times waits for Python, not for products: the route asks
some forty questions, ten microseconds in all, most of which are about transforms, options and reports.  Here the few
that rule all of those out are asked at once.  Whatever they do not rule out, a matrix outside the domain included,
takes the route.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .differentiation import matrix_function, under_transform
from .kernels.calling import readable
from .route import Route

if TYPE_CHECKING:
    from .kernels.compiled import Kernel, Rungs
    from .networks.exponential import EquivariantExponential

# Entries of a batch up to which a microsecond is seen, and computing it twice for a matrix outside costs little.
FEW = 1 << 16
REAL = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}


def exponential(A: Any, default: Callable[[torch.dtype], EquivariantExponential]) -> Tensor | None:
    """exp(A) by the default network, with derivatives of every order; None where the route must be taken.

    Args:
        A: whatever a caller gave.
        default: the network of a real dtype.
    """
    if torch.compiler.is_compiling() or under_transform() or forward_ad._current_level >= 0:
        return None
    if not isinstance(A, Tensor) or not readable(A) or not A.is_cpu or A.layout != torch.strided:
        return None
    if not 0 < A.numel() <= FEW or not A.is_contiguous() or A.is_conj():
        return None
    shape, real = A.shape, REAL.get(A.dtype)
    if real is None or len(shape) < 2 or shape[-1] != shape[-2]:
        return None
    network = default(real)
    if (found := network.at_once(A, real)) is None:
        return None
    if A.requires_grad and torch.is_grad_enabled():
        return matrix_function(A, _AtOnce(network, *found))
    kernel, rungs = found
    return kernel.value_at_once(A, rungs)


class _AtOnce:
    """Evaluator (see ``differentiation.py``) of a batch that one call of a kernel serves; of any other, the route."""

    def __init__(self, network: EquivariantExponential, kernel: Kernel, rungs: Rungs) -> None:
        self.network, self.kernel, self.rungs = network, kernel, rungs
        self.route: Route | None = None
        self.level: Tensor | None = None

    def renewed(self) -> Route:
        return Route("expm", self.network, "exact")

    def value(self, A: Tensor) -> Tensor:
        self.level = torch.empty(A.shape[:-2], dtype=torch.uint8)
        result = self.kernel.value_at_once(A, self.rungs, self.level)
        if result is not None:
            return result
        self.route = self.renewed()
        return self.route.value(A)

    def frechet(self, A: Tensor, E: Tensor) -> Tensor:
        """L(A, E), shape (*, n, n), for the matrices that :meth:`value` saw or for their adjoints."""
        if self.route is not None or self.level is None or not readable(E):
            return (self.route or self.renewed()).frechet(A, E)
        flat, direction = (A, E) if A.ndim == 3 else (X.reshape(-1, *X.shape[-2:]) for X in (A, E))
        out = torch.empty_like(flat, memory_format=torch.contiguous_format)
        self.kernel.frechet(flat, direction, self.rungs, self.level, out)
        return out if A.ndim == 3 else out.reshape(A.shape)
