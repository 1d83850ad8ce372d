"""Compiled CPU kernels for small matrices: which shapes have one, when one is made, and how it is called.

The environment variable NEURAL_EXPM_COMPILE says when: ``auto`` (default) compiles in the background once a shape has
been asked for often enough to repay it, and the eager kernel answers meanwhile; ``1`` compiles at the first call and
waits; ``0`` never.  A library that is already in the cache folder is used from the first call on.  Whatever goes wrong
(no compiler, a failing one, a folder that is full or read-only, a library that computes wrongly) is logged once, and
the eager kernel answers.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from functools import partial
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from . import eager, toolchain

log = logging.getLogger("neural_expm")

# Largest n that is faster one-register-many-matrices than through batched GEMMs (benchmarks/scaling.py); from FILLED_N
# on only where the registers are filled, since idle lanes cost as much as busy ones.
LARGEST_N = 32
FILLED_N = 16
FILLED_COUNT = 8
# A shape is compiled after so many calls, or so many matrices; compiling costs one core some seconds, once a machine.
WORTH_CALLS = 24
WORTH_MATRICES = 20_000
# Multiply-adds that one more thread is worth (starting one takes some ten microseconds).
WORK_PER_THREAD = 1 << 20
DTYPES = {
    torch.float32: ("float", 0),
    torch.float64: ("double", 0),
    torch.complex64: ("float", 1),
    torch.complex128: ("double", 1),
}
# Relative error that the check of a fresh library allows: a few hundred roundings.
CHECK = {torch.float32: 1e-4, torch.float64: 1e-12}


class Source(ctypes.Structure):
    """A batch of matrices with any strides."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("matrix", ctypes.c_int64),
        ("row", ctypes.c_int64),
        ("column", ctypes.c_int64),
        ("conjugate", ctypes.c_int64),
    )


class Network(ctypes.Structure):
    """Weights of a tier with a number of squarings."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("products", ctypes.c_int64),
        ("squarings", ctypes.c_int64),
        ("identity", ctypes.c_double),
    )


class Rungs:
    """The rungs of a ladder as the library reads them.

    Args:
        radii: of each rung, increasing, in the real dtype of the matrices.
        networks: for each rung the flat weights (``EquivariantTransformer.flat``), the read-out of I, and s.
    """

    def __init__(self, radii: Tensor, networks: list[tuple[Tensor, float, int]]) -> None:
        self.radii, self.weights = radii, [weights for weights, _, _ in networks]
        self.count = len(networks)
        # Heads 2 … m take 2h weights each and the read-out m + 1: m² + 2m − 1 in all.
        self.products = [round((weights.shape[0] + 2) ** 0.5) - 1 for weights in self.weights]
        self.networks = (Network * self.count)(
            *(
                Network(weights.data_ptr(), products, squarings, identity)
                for products, (weights, identity, squarings) in zip(self.products, networks, strict=True)
            )
        )


class Kernel:
    """The compiled functions for one n and dtype; tensors are on the CPU.

    Args:
        library: compiled from ``batched.cpp``.
    """

    name = "compiled"

    def __init__(self, library: ctypes.CDLL, n: int, dtype: torch.dtype) -> None:
        self.n, self.dtype = n, dtype
        self.parts = 2 if dtype.is_complex else 1
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._value = library.neural_expm_value
        self._value.argtypes = [
            pointer,
            integer,
            pointer,
            integer,
            pointer,
            integer,
            pointer,
            pointer,
            integer,
        ]
        self._frechet = library.neural_expm_frechet
        self._frechet.argtypes = [pointer, pointer, integer, integer, pointer, pointer, pointer, integer]

    def _source(self, A: Tensor) -> Source:
        matrix, row, column = A.stride()
        parts = self.parts
        return Source(A.data_ptr(), matrix * parts, row * parts, column * parts, A.is_conj())

    def _threads(self, count: int, products: int) -> int:
        work = count * products * self.n**3 * self.parts**2
        return max(1, min(torch.get_num_threads(), work // WORK_PER_THREAD))

    def value(self, A: Tensor, rungs: Rungs, trust: bool, out: Tensor | None) -> tuple[Tensor, bool]:
        """Out ← exp(A), each matrix by the first rung that reaches its ``domain.norm_bound``, or a deeper one.

        Args:
            A: shape (batch, n, n), any strides.
            trust: what no rung reaches gets the last one.
            out: contiguous (batch, n, n); None to ask for the rungs alone.

        Returns:
            The rung of each matrix, (batch) uint8, the number of rungs for those outside, which ``out`` leaves unset;
            and whether there are any.
        """
        count = A.shape[0]
        level = torch.empty(count, dtype=torch.uint8)
        status = self._value(
            ctypes.byref(self._source(A)),
            count,
            rungs.radii.data_ptr(),
            rungs.count,
            rungs.networks,
            trust,
            level.data_ptr(),
            None if out is None else out.data_ptr(),
            self._threads(count, 8),
        )
        return level, _checked(status)

    def frechet(self, A: Tensor, E: Tensor, rungs: Rungs, level: Tensor, out: Tensor) -> None:
        """Out ← L(A, E) by the rungs in ``level``; ``out`` contiguous, rows outside left unset."""
        count = A.shape[0]
        status = self._frechet(
            ctypes.byref(self._source(A)),
            ctypes.byref(self._source(E)),
            count,
            rungs.count,
            rungs.networks,
            level.data_ptr(),
            out.data_ptr(),
            self._threads(count, 24),
        )
        _checked(status)


def _checked(status: int) -> bool:
    if status < 0:
        raise MemoryError("neural_expm: no memory for the workspace of a compiled kernel")
    return status > 0


# --- which shapes have one --------------------------------------------------------------------------------------------


class _Shape:
    """What is known of one (n, dtype)."""

    def __init__(self) -> None:
        self.kernel: Kernel | None = None
        self.state = "new"  # → "waiting" → "building" → "ready" or "failed"
        self.calls = self.matrices = 0


_shapes: dict[tuple[int, torch.dtype], _Shape] = {}
_lock = threading.Lock()
_logged = False


def find(A: Tensor) -> Kernel | None:
    """The kernel for a batch of shape (batch, n, n), if there is one now; asking counts towards making one."""
    n, dtype = A.shape[-1], A.dtype
    if not 2 <= n <= LARGEST_N or dtype not in DTYPES or A.device.type != "cpu":
        return None
    if n >= FILLED_N and A.shape[0] < FILLED_COUNT:
        return None
    if not readable(A) or torch.compiler.is_compiling():
        return None
    shape = _shapes.get((n, dtype)) or _shapes.setdefault((n, dtype), _Shape())
    if shape.kernel is not None:
        return shape.kernel
    if shape.state in ("failed", "building"):
        return None
    return _consider(shape, n, dtype, A.shape[0])


def readable(A: Tensor) -> bool:
    """Whether the kernels can read the memory of A; fake, functional and other wrapped tensors have none."""
    return type(A) in (Tensor, torch.nn.Parameter) and not A.is_neg()


def _consider(shape: _Shape, n: int, dtype: torch.dtype, matrices: int) -> Kernel | None:
    mode = os.environ.get("NEURAL_EXPM_COMPILE", "auto").lower()
    if mode in ("0", "never", "off"):
        return None
    with _lock:
        if shape.state == "new":
            shape.state = "waiting"
            _adopt(shape, n, dtype)
        shape.calls += 1
        shape.matrices += matrices
        if shape.state != "waiting":
            return shape.kernel
        if mode != "1" and shape.calls < WORTH_CALLS and shape.matrices < WORTH_MATRICES:
            return None
        shape.state = "building"
    if mode == "1":
        _build(shape, n, dtype)
    else:
        threading.Thread(
            target=_build, args=(shape, n, dtype), name="neural_expm compiler", daemon=True
        ).start()
    return shape.kernel


def _recipe(n: int, dtype: torch.dtype) -> tuple[str, dict[str, Any], str]:
    source = resources.files(__package__).joinpath("batched.cpp").read_text(encoding="utf-8")
    scalar, is_complex = DTYPES[dtype]
    return source, {"SIZE": n, "REAL": scalar, "COMPLEX": is_complex}, f"batched-{n}-{str(dtype)[6:]}"


def _adopt(shape: _Shape, n: int, dtype: torch.dtype) -> None:
    """Take the library from the cache folder, if it is there."""
    try:
        source, defines, stem = _recipe(n, dtype)
        library = toolchain.load(toolchain.library_path(source, defines, stem))
        if library is not None:
            _accept(shape, library, n, dtype)
    except (toolchain.ToolchainError, OSError) as error:
        _give_up(shape, n, dtype, error)


def _build(shape: _Shape, n: int, dtype: torch.dtype) -> None:
    try:
        source, defines, stem = _recipe(n, dtype)
        library = toolchain.build(source, defines, toolchain.library_path(source, defines, stem))
        _accept(shape, library, n, dtype)
    except Exception as error:  # whatever it is, it must not reach a caller who asked for an exponential
        _give_up(shape, n, dtype, error)


def _accept(shape: _Shape, library: ctypes.CDLL, n: int, dtype: torch.dtype) -> None:
    """Use a library if it computes what the eager kernel does."""
    kernel = Kernel(library, n, dtype)
    error = discrepancy(kernel)
    if not error <= CHECK[dtype.to_real()]:
        raise toolchain.ToolchainError(f"the compiled library is wrong (relative error {error:.1e})")
    shape.kernel, shape.state = kernel, "ready"


def discrepancy(kernel: Kernel) -> float:
    """Largest relative difference from the eager kernel, over a small batch with a fixed seed."""
    n, dtype, count = kernel.n, kernel.dtype, 19
    real = dtype.to_real()
    generator = torch.Generator().manual_seed(n)
    A, E = torch.randn(2, count, n, n, dtype=dtype, generator=generator) / n
    A[::3] *= 0.1
    networks = []
    for m in (2, 3):
        weights = [torch.rand(2, h, dtype=real, generator=generator) for h in range(2, m + 1)]
        networks.append([*weights, torch.rand(1, m + 1, dtype=real, generator=generator)])
    flat = [torch.cat([w.reshape(-1) for w in weights]) for weights in networks]
    rungs = Rungs(torch.tensor([0.3, 1e3], dtype=real), [(flat[0], 0.5, 0), (flat[1], -0.5, 2)])
    value, derivative, expected = torch.zeros_like(A), torch.zeros_like(A), torch.zeros_like(A)
    level, _ = kernel.value(A.mH, rungs, True, value)
    # One rung for all: matrices that share a register share the deepest of their rungs, which are not the same function
    # here, and which share a register depends on the number of threads.
    one = torch.ones_like(level)
    kernel.frechet(A.mH, E, rungs, one, derivative)
    adjoint = A.mH.resolve_conj().contiguous()
    worst = 0.0
    for got, compute, used in (
        (value, partial(eager.exponential, adjoint), level),
        (derivative, partial(eager.exponential_frechet, adjoint, E), one),
    ):
        for index, (weights, identity, squarings) in enumerate(
            ((networks[0], 0.5, 0), (networks[1], -0.5, 2))
        ):
            compute(weights, identity, squarings, expected, torch.nonzero(used == index)[:, 0])
        worst = max(worst, float((got - expected).abs().max() / expected.abs().max()))
    return worst


def _give_up(shape: _Shape, n: int, dtype: torch.dtype, error: Exception) -> None:
    global _logged
    shape.state = "failed"
    # A missing compiler is ordinary; anything else the user may want to mend.
    level = logging.INFO if "no C++ compiler" in str(error) else logging.WARNING
    if not _logged:
        log.log(level, "no compiled kernel for n = %d, %s: %s; the eager kernel answers", n, dtype, error)
        _logged = True


def state() -> dict[tuple[int, torch.dtype], str]:
    """Of each (n, dtype) asked for so far: ``"waiting"``, ``"building"``, ``"ready"`` or ``"failed"``."""
    return {key: shape.state for key, shape in list(_shapes.items())}


def forget() -> None:
    """Start anew, as a fresh process would."""
    global _logged
    with _lock:
        _shapes.clear()
        _logged = False


def _after_fork() -> None:
    """The child has the libraries but neither the compiling thread nor, perhaps, a free lock."""
    global _lock
    _lock = threading.Lock()
    for shape in _shapes.values():
        if shape.state == "building":
            shape.state = "waiting"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
