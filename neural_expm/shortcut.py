"""A few plain matrices straight to their kernel: the answer of the route, without its questions.

A program that calls ``expm`` on one small matrix thousands of times waits for Python, not for products: the route asks
some forty questions, ten to thirty microseconds in all, most of which are about transforms, options and reports.  Here
the few that rule all of those out are asked at once, and what is the same for every batch of a shape is bound when the
first one comes.  Whatever they do not rule out, a matrix outside the domain included, takes the route.
"""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .differentiation import matrix_function
from .kernels.calling import BOUND, CPU, FIELDS, aside
from .kernels.multiples import glance
from .kernels.precision import full_precision
from .route import Route

if TYPE_CHECKING:
    from .kernels.exponential_kernel import Bound
    from .kernels.one_parameter import OneParameter
    from .networks.exponential import EquivariantExponential

# Entries of a batch up to which the route's questions are seen: of more, they take a fiftieth of the time at most.
FEW = 1 << 20
# A batch with a matrix outside is computed twice.  From so many entries on that is worse than the questions: its shape
# takes the route from then on.
ONCE = 1 << 16
SHAPES = 256  # that are remembered

# Bound once: to look them up takes as long as to ask them.
_is_compiling, _parameter = torch.compiler.is_compiling, torch.nn.Parameter
_interpreter, _modes = torch._C._functorch.peek_interpreter_stack, torch._C._len_torch_dispatch_stack
_tracing, _keys = torch._C._get_tracing_state, torch._C._dispatch_keys


def _keys_of(*dtypes: torch.dtype) -> frozenset[int]:
    """To whom torch's dispatcher would take a dense tensor on the CPU, one of inference mode too, or its conjugate.

    Any other (sparse, quantised, on a device, negative, lazily zero, batched by the older vmap, fake or wrapped by a
    transform) has a key more or another one.
    """
    ordinary = [torch.empty(0, dtype=dtype, device=CPU).conj() for dtype in dtypes]
    with torch.inference_mode():
        inference = [torch.empty(0, dtype=dtype, device=CPU).conj() for dtype in dtypes]
    return frozenset(_keys(tensor).raw_repr() for tensor in ordinary + inference)


# Asked aside: this may be imported under a mode whose tensors are others.  A real tensor is its own conjugate.
PLAIN = aside(partial(_keys_of, torch.float32))
PLAIN_OR_CONJUGATE = aside(partial(_keys_of, torch.float32, torch.complex64))


class Ready(NamedTuple):
    """What is known of a shape and dtype: the network, the calls of the kernel that will answer, room for rungs.

    Where ``once`` holds, all batches of the shape take the route after one that has to.  ``glance``, where it is there,
    tells of the address of a batch whether it may be one of multiples of one matrix.
    """

    network: EquivariantExponential
    bound: Bound
    levels: type[ctypes.Array[ctypes.c_uint8]]
    once: bool
    glance: Callable[[int], bool] | None


def exponential(A: Any, default: Callable[[torch.dtype], EquivariantExponential]) -> Tensor | None:
    """exp(A) by the default network, with derivatives of every order; None where the route must be taken.

    Args:
        A: whatever a caller gave.
        default: the network of a real dtype.
    """
    if _is_compiling() or _interpreter() is not None or forward_ad._current_level >= 0:
        return None
    if (type(A) is not Tensor and type(A) is not _parameter) or _modes() or _tracing() is not None:
        return None
    if _keys(A).raw_repr() not in PLAIN or not A.is_contiguous():
        return None
    ready = BOUND.get((A.shape, A.dtype))
    if ready is None:
        ready = _bind(A, default)
    if not ready:
        return None
    differentiable = A.requires_grad and torch.is_grad_enabled()
    if ready.glance is not None and ready.glance(A.data_ptr()):
        out = torch.empty_like(A, requires_grad=False)
        shared = ready.network.multiples(_flat(A), _flat(out))
        if shared is not None:
            evaluator = _Multiples(ready, shared, out)
            return matrix_function(A, evaluator) if differentiable else evaluator.value(A)
    if differentiable:
        return matrix_function(A, _AtOnce(ready))
    result = ready.bound.value(A, 0)
    if result is None:
        _refused(A, ready)
    return result


def _refused(A: Tensor, ready: Ready) -> None:
    """A has to take the route."""
    if ready.once and (A.shape, A.dtype) in BOUND:
        BOUND[A.shape, A.dtype] = False


def _bind(A: Tensor, default: Callable[[torch.dtype], EquivariantExponential]) -> Ready | None:
    """What there is for batches like A, remembered once it stays so."""
    shape, dtype = A.shape, A.dtype
    if not 0 < A.numel() <= FEW or len(shape) < 2 or shape[-1] != shape[-2] or dtype not in FIELDS:
        return None
    flat, network = A.detach().reshape(-1, *shape[-2:]), default(dtype.to_real())
    settled = network.settled(flat)  # before the calls are chosen: the next ones may be others
    bound = network.calls(flat)
    if bound is None:
        return None
    looked = glance(flat) if network.may_share(flat) else None
    ready = Ready(network, bound, ctypes.c_uint8 * flat.shape[0], A.numel() >= ONCE, looked)
    if settled:
        if len(BOUND) >= SHAPES:
            BOUND.clear()
        BOUND[shape, dtype] = ready
    return ready


class _Direct:
    """Evaluator (see ``differentiation.py``) that asks the route where it has no answer of its own."""

    def __init__(self, ready: Ready) -> None:
        self.ready = ready

    def renewed(self) -> Route:
        return Route("expm", self.ready.network, "exact")

    def frechet(self, A: Tensor, E: Tensor) -> Tensor:
        """L(A, E), shape (*, n, n), for the matrices that :meth:`value` saw or for their adjoints."""
        plain = not _modes() and _tracing() is None and type(E) is Tensor and _keys(E).raw_repr() in PLAIN
        result = self.derivative(A, E) if plain and _as_it_was(A, E) else None
        return self.renewed().frechet(A, E) if result is None else result

    @abstractmethod
    def derivative(self, A: Tensor, E: Tensor) -> Tensor | None:
        """L(A, E) for plain A and E; None where the route has to answer."""


class _AtOnce(_Direct):
    """Of a batch that one call of a kernel serves."""

    def __init__(self, ready: Ready) -> None:
        super().__init__(ready)
        self.route: Route | None = None
        self.levels: ctypes.Array[ctypes.c_uint8] | None = None

    def value(self, A: Tensor) -> Tensor:
        self.levels = self.ready.levels()
        result = self.ready.bound.value(A, ctypes.addressof(self.levels))
        if result is None:
            _refused(A, self.ready)
            self.route = self.renewed()
            return self.route.value(A)
        return result

    def frechet(self, A: Tensor, E: Tensor) -> Tensor:
        return super().frechet(A, E) if self.route is None else self.route.frechet(A, E)

    def derivative(self, A: Tensor, E: Tensor) -> Tensor | None:
        if self.levels is None:
            return None
        return self.ready.bound.frechet(A, E.contiguous(), ctypes.addressof(self.levels))


class _Multiples(_Direct):
    """Of a batch of multiples of one matrix."""

    def __init__(self, ready: Ready, shared: OneParameter, out: Tensor) -> None:
        super().__init__(ready)
        self.shared, self.room = shared, [out]

    def value(self, A: Tensor) -> Tensor:
        out = self.room.pop()  # or it would wait for itself to be let go of
        with full_precision(A):
            self.shared.exponentials(_flat(out))
        return out

    def derivative(self, A: Tensor, E: Tensor) -> Tensor | None:
        out = torch.empty_like(E, memory_format=torch.contiguous_format)
        with full_precision(A):
            done = self.shared.frechet(_flat(A), _flat(E), _flat(out))
        return out if done else None


def _flat(X: Tensor) -> Tensor:
    """Shape (batch, n, n)."""
    return X if X.dim() == 3 else X.reshape(-1, *X.shape[-2:])


def _as_it_was(A: Tensor, E: Tensor) -> bool:
    """Whether A is what an evaluator saw, or its adjoint: a hook may have saved another tensor in its place."""
    if type(A) not in (Tensor, torch.nn.Parameter) or A.shape != E.shape or A.dtype != E.dtype:
        return False
    return _keys(A).raw_repr() in PLAIN_OR_CONJUGATE and (A.is_contiguous() or A.mT.is_contiguous())
