"""What the tests of machine code share: which there is here, and memory that ends before a wall."""

from __future__ import annotations

import ctypes
import mmap

import pytest
import torch

from neural_expm.kernels import assembled

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]

try:
    WIDTHS = [False, True] if assembled.wide() else [False]
except assembled.Unavailable:
    WIDTHS = []

needs_code = pytest.mark.skipif(
    not WIDTHS, reason="machine code is for x86-64 processors with AVX2 under Linux or macOS"
)


def before_a_wall(A: torch.Tensor) -> torch.Tensor:
    """A copy whose last byte is the last one before a page that nobody may touch."""
    page = mmap.PAGESIZE
    size = -(-A.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    wall = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size
    libc = ctypes.CDLL(None)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert libc.mprotect(wall, page, 0) == 0
    copy = torch.frombuffer(memory, dtype=A.dtype, count=A.numel(), offset=size - A.nbytes)
    return copy.view(A.shape).copy_(A)
