"""Where results are written to."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Any

import torch
from torch import Tensor

# From here on glibc takes every allocation anew from the system and gives it back: its pages come one fault each, which
# takes longer than to fill them.  Pages of 2 MiB instead of 4 KiB are 512 times fewer.
LARGE_BYTES = 1 << 25


def result_like(A: Tensor) -> Tensor:
    """Uninitialised, contiguous, of the shape, dtype and device of A; on a CPU in large pages where there is much.

    As numpy does for its arrays; torch leaves it to the caller.
    """
    result = torch.empty_like(A, memory_format=torch.contiguous_format)
    size = A.numel() * A.element_size()
    if size >= LARGE_BYTES and type(result) is Tensor and A.device.type == "cpu" and (advise := _madvise()):
        page = mmap.PAGESIZE
        begin = -(-result.data_ptr() // page) * page
        end = (result.data_ptr() + size) // page * page
        advise(begin, end - begin, mmap.MADV_HUGEPAGE)  # advice: nothing is lost where it is not taken
    return result


@cache
def _madvise() -> Any:
    """The system's function, None where there is none or it knows no such advice."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
