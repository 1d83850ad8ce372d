"""Memory for large results: what a program has let go of serves the next one.

The system hands out a fresh page at its first touch and clears it, which takes as long as the products of a large
batch, and C libraries give blocks of some ten megabytes back to it as soon as they are freed.  Here a block that its
last tensor has let go of is kept, with leave for the system to take its pages whenever it needs them (``MADV_FREE``);
until it does, the next result of that size finds them as they were.  To give leave takes as long as to fill the block:
a few small ones are kept without.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref

import torch
from torch import Tensor

from .calling import CPU, readable

# Bytes of a result from which on GNU's C library asks the system for each block anew, whatever was freed before.
LARGE = 1 << 25
KEPT_BYTES = 1 << 29  # of all blocks that no tensor uses; what would be more is given back at once
# Blocks up to the first size are kept without leave to take their pages, so many bytes of them.
SMALL, SMALL_BYTES = 1 << 22, 1 << 24
SPARE = 1.25  # a block may be so many times larger than the result that it serves
HUGE_PAGE = 1 << 21
_SYSTEM_CAN = all(hasattr(mmap, name) for name in ("MADV_FREE", "MAP_PRIVATE", "MAP_ANONYMOUS"))

# Blocks that no tensor uses.  Only list methods that the interpreter does in one step touch it: a block may come back
# in any thread and at any time.
_kept: list[mmap.mmap] = []


def empty_result(A: Tensor, large: int | None = None) -> Tensor:
    """Uninitialised and contiguous, with the shape, dtype and device of A, which is (batch, n, n).

    Args:
        A: a batch.
        large: bytes from which on memory is used again; None for ``LARGE``.

    A tensor like any other, except that neither ``resize_`` can make it larger nor ``untyped_storage().resize_(0)`` let
    go of its memory, as with one that came from NumPy.
    """
    if A.nbytes >= (LARGE if large is None else large) and _SYSTEM_CAN and A.is_cpu and readable(A):
        block = _take(A.nbytes)
        if block is not None:
            return _lend(block, A)
    return torch.empty_like(A, memory_format=torch.contiguous_format)


def reshaped(result: Tensor, shape: torch.Size) -> Tensor:
    """A fresh contiguous result with another shape; not as a view, which autograd lets nobody change in place."""
    return result if result.shape == shape else torch.ops.aten._unsafe_view.default(result, shape)


def _take(size: int) -> mmap.mmap | None:
    """The smallest block that is kept and large enough, else a new one; None if the system has none."""
    size = -(-size // HUGE_PAGE) * HUGE_PAGE
    for block in sorted(_kept, key=len):
        if size <= len(block) <= SPARE * size:
            try:
                _kept.remove(block)
            except ValueError:  # another thread was faster
                continue
            return block
    try:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        return None  # torch says it better
    if hasattr(mmap, "MADV_HUGEPAGE"):
        _advise(block, mmap.MADV_HUGEPAGE)
    return block


def _lend(block: mmap.mmap, A: Tensor) -> Tensor:
    """A tensor like A in a block, which comes back when the last that shares its memory is gone."""
    lease = (ctypes.c_char * len(block)).from_buffer(block)
    weakref.finalize(lease, _give_back, block).atexit = False
    memory = torch.frombuffer(lease, dtype=A.dtype, count=A.numel()).untyped_storage()
    n = A.shape[-1]
    # No view of another tensor, as which autograd would let nobody change it in place.
    return torch.empty(0, dtype=A.dtype, device=CPU).set_(memory, 0, A.shape, (n * n, n, 1))


def _give_back(block: mmap.mmap) -> None:
    if sum(map(len, _kept)) + len(block) > KEPT_BYTES:
        return
    small = len(block) <= SMALL and sum(len(other) for other in _kept if len(other) <= SMALL) < SMALL_BYTES
    if small or _advise(block, mmap.MADV_FREE):
        _kept.append(block)


def _advise(block: mmap.mmap, advice: int) -> bool:
    """Whether the system takes the advice."""
    try:
        block.madvise(advice)
    except OSError:
        return False
    return True
