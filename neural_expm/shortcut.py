"""A few plain matrices straight to a native kernel: the answer of the route, without its questions.

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
from .kernels.calling import CPU, readable
from .route import Route

if TYPE_CHECKING:
    from .kernels.exponential_kernel import ExponentialKernel, Rungs
    from .networks.exponential import EquivariantExponential

# Entries of a batch up to which a microsecond is seen, and computing it twice for a matrix outside costs little.
FEW = 1 << 16


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
    shape, real = A.shape, A.dtype.to_real()
    if len(shape) < 2 or shape[-1] != shape[-2]:
        return None
    network, flat = default(real), A if len(shape) == 3 else A.reshape(-1, *shape[-2:])
    if (kernel := network.at_once(flat)) is None:
        return None
    rungs = network.rungs(real)
    if A.requires_grad and torch.is_grad_enabled():
        return matrix_function(A, _AtOnce(network, kernel, rungs))
    result = kernel.value_at_once(flat, rungs)
    return result if result is None or len(shape) == 3 else result.reshape(shape)


class _AtOnce:
    """Evaluator (see ``differentiation.py``) of a batch that one call of a kernel serves; of any other, the route."""

    def __init__(self, network: EquivariantExponential, kernel: ExponentialKernel, rungs: Rungs) -> None:
        self.network, self.kernel, self.rungs = network, kernel, rungs
        self.route: Route | None = None
        self.level: Tensor | None = None

    def renewed(self) -> Route:
        return Route("expm", self.network, "exact")

    def value(self, A: Tensor) -> Tensor:
        self.level = torch.empty(A.shape[:-2], dtype=torch.uint8, device=CPU)
        result = self.kernel.value_at_once(_flat(A), self.rungs, self.level)
        if result is not None:
            return result if A.ndim == 3 else result.reshape(A.shape)
        self.route = self.renewed()
        return self.route.value(A)

    def frechet(self, A: Tensor, E: Tensor) -> Tensor:
        """L(A, E), shape (*, n, n), for the matrices that :meth:`value` saw or for their adjoints."""
        if self.route is not None:
            return self.route.frechet(A, E)
        if self.level is None or not readable(E):
            return self.renewed().frechet(A, E)
        out = torch.empty(A.shape, dtype=A.dtype, device=CPU)
        self.kernel.frechet(_flat(A), _flat(E), self.rungs, self.level, _flat(out))
        return out


def _flat(A: Tensor) -> Tensor:
    return A if A.ndim == 3 else A.reshape(-1, *A.shape[-2:])
