"""Compiled CPU kernels for small matrices: which shapes have one, when one is made, and which kinds there are.

The environment variable NEURAL_EXPM_COMPILE says when: ``auto`` (default) compiles in the background once a shape has
been asked for often enough to repay it, and the eager kernel answers meanwhile; ``1`` compiles at the first call and
waits; ``0`` never, for shapes first met then.  A library that is already in the cache folder is used from the first
call on.  Whatever goes wrong (no compiler, a failing one, a folder that is full or read-only, a library that computes
wrongly) is logged once, and the eager kernel answers.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from ..calling import BOUND, CHECK, Library, aside, readable
from . import toolchain
from .composition import RootKernel, SignKernel
from .exponential import Kernel

__all__ = ["KINDS", "Kernel", "find", "forget", "readable", "ready", "settled", "state"]

log = logging.getLogger("neural_expm")

KINDS: dict[str, type[Library]] = {
    "expm": Kernel,
    "sign": SignKernel,
    "sqrtm": RootKernel,
}
# A shape is compiled after so many calls, or so many matrices; compiling costs one core some seconds, once a machine.
WORTH_CALLS = 24
WORTH_MATRICES = 20_000
DTYPES = {
    torch.float32: ("float", 0),
    torch.float64: ("double", 0),
    torch.complex64: ("float", 1),
    torch.complex128: ("double", 1),
}

# --- which shapes have one --------------------------------------------------------------------------------------------


class _Shape:
    """What is known of one (kind, n, dtype)."""

    def __init__(self) -> None:
        self.kernel: Library | None = None
        self.state = "new"  # → "waiting" → "building" → "ready" or "failed"; or "off"
        self.calls = self.matrices = 0


Key = tuple[str, int, torch.dtype]
_shapes: dict[Key, _Shape] = {}
_lock = threading.Lock()
_failure = ""  # the first one, in words; logged once


def find(A: Tensor, kind: str = "expm") -> Any:
    """The kernel of KINDS for a batch of shape (batch, n, n), None if there is none now.

    Asking counts towards making one.
    """
    count, _, n = A.shape
    key = kind, n, A.dtype
    shape = _shapes.get(key)
    if shape is not None and shape.state in ("failed", "building", "off"):
        return None
    if n < 2 or not KINDS[kind].worthwhile(n, count) or not readable(A) or not A.is_cpu:
        return None
    if torch.compiler.is_compiling():
        return None
    shape = shape or _shapes.setdefault(key, _Shape())
    return _consider(shape, key, count) if shape.kernel is None else shape.kernel


def ready(kind: str, n: int, dtype: torch.dtype) -> Any:
    """The kernel for readable tensors on the CPU if one is there already, else None."""
    shape = _shapes.get((kind, n, dtype))
    return None if shape is None else shape.kernel


def settled(kind: str, count: int, n: int, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for such batches, or will be none."""
    if n < 2 or not KINDS[kind].worthwhile(n, count):
        return True
    shape = _shapes.get((kind, n, dtype))
    return shape is not None and shape.state in ("ready", "failed", "off")


def _consider(shape: _Shape, key: Key, matrices: int) -> Library | None:
    mode = os.environ.get("NEURAL_EXPM_COMPILE", "auto").lower()
    if mode in ("0", "never", "off"):
        shape.state = "off"
        return None
    with _lock:
        if shape.state == "new":
            shape.state = "waiting"
            _adopt(shape, key)
        shape.calls += 1
        shape.matrices += matrices
        if shape.state != "waiting":
            return shape.kernel
        if mode != "1" and shape.calls < WORTH_CALLS and shape.matrices < WORTH_MATRICES:
            return None
        shape.state = "building"
    if mode == "1":
        _build(shape, key)
    else:
        threading.Thread(target=_build, args=(shape, key), name="neural_expm compiler", daemon=True).start()
    return shape.kernel


def _recipe(kind: str, n: int, dtype: torch.dtype) -> tuple[str, dict[str, Any], str]:
    """Source, definitions and the stem of the file name of a library."""
    made = KINDS[kind]
    source = _with_headers(made.file(n, dtype), set())
    scalar, is_complex = DTYPES[dtype]
    defines = {"SIZE": n, "REAL": scalar, "COMPLEX": is_complex, **made.defines(n, dtype)}
    return source, defines, f"{kind}-{n}-{str(dtype)[6:]}"


def _with_headers(name: str, seen: set[str]) -> str:
    """A source file with the headers of this folder put in, each once: a library is named by all that goes into it."""
    seen.add(name)
    lines = resources.files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines(keepends=True)
    for i, line in enumerate(lines):
        if line.startswith('#include "'):
            header = line.split('"')[1]
            lines[i] = "" if header in seen else _with_headers(header, seen)
    return "".join(line for line in lines if line != "#pragma once\n")


def _adopt(shape: _Shape, key: Key) -> None:
    """Take the library from the cache folder, if it is there."""
    try:
        library = toolchain.load(toolchain.library_path(*_recipe(*key)))
        if library is not None:
            _accept(shape, library, key)
    except (toolchain.ToolchainError, OSError) as error:
        _give_up(shape, key, error)


def _build(shape: _Shape, key: Key) -> None:
    try:
        source, defines, stem = _recipe(*key)
        library = toolchain.build(source, defines, toolchain.library_path(source, defines, stem))
        _accept(shape, library, key)
    except Exception as error:
        # Whatever it is, it must not reach a caller who asked for a function of a matrix.
        _give_up(shape, key, error)


def _accept(shape: _Shape, library: ctypes.CDLL, key: Key) -> None:
    """Use a library if it computes what the eager kernel does."""
    kind, n, dtype = key
    kernel = KINDS[kind](library, n, dtype)
    error = aside(kernel.discrepancy)
    if not error <= CHECK[dtype.to_real()]:
        raise toolchain.ToolchainError(f"the compiled library is wrong (relative error {error:.1e})")
    shape.kernel, shape.state = kernel, "ready"


def _give_up(shape: _Shape, key: Key, error: Exception) -> None:
    global _failure
    shape.state = "failed"
    # A missing compiler is ordinary; anything else the user may want to mend.
    level = logging.INFO if "no C++ compiler" in str(error) else logging.WARNING
    if not _failure:
        kind, n, dtype = key
        _failure = f"no compiled kernel of {kind} for n = {n}, {dtype}: {error}"
        log.log(level, "%s; another kernel answers", _failure)


def failure() -> str:
    """Why a compiled kernel could not be had, in words; empty where none has failed."""
    return _failure


def state() -> dict[Key, str]:
    """Of each (kind, n, dtype) asked for: ``"waiting"``, ``"building"``, ``"ready"``, ``"failed"`` or ``"off"``."""
    return {key: shape.state for key, shape in list(_shapes.items())}


def forget() -> None:
    """Start anew, as a fresh process would."""
    global _failure
    with _lock:
        _shapes.clear()
        _failure = ""
    BOUND.clear()


def _after_fork() -> None:
    """The child has the libraries but neither the compiling thread nor, perhaps, a free lock."""
    global _lock
    _lock = threading.Lock()
    for shape in _shapes.values():
        if shape.state == "building":
            shape.state = "waiting"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
