"""Machine code in memory: for which processors there is any, pages that can be executed, and room to work in."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
import threading
from functools import lru_cache

import torch
from torch import Tensor


class Unavailable(Exception):
    """No machine code here, and why."""


@lru_cache(maxsize=1)
def wide() -> bool:
    """Whether vector registers are those of AVX-512; else those of AVX2.

    Raises:
        Unavailable: there is neither, or the system is not one that the code is written for.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or not sys.platform.startswith(
        ("linux", "darwin")
    ):
        raise Unavailable(f"no assembler for {platform.machine()} under {sys.platform}")
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith(("AVX2", "AVX512")):
        raise Unavailable(f"the assembler needs AVX2, torch finds {capability}")
    return capability.startswith("AVX512")


def executable(code: bytes) -> int:
    """The address of a copy that can be executed and no longer be written to, for the life of the process.

    Raises:
        Unavailable: the system does not allow it.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        address = libc.mmap(
            None, len(code), mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
        )
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        ctypes.memmove(address, code, len(code))
        if libc.mprotect(address, len(code), mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except (OSError, AttributeError) as error:
        raise Unavailable(f"the system allows no new machine code ({error})") from error
    return address


class Workspace(threading.local):
    """Of one calling thread, reused; grows."""

    memory: Tensor | None = None
    size = begin = 0

    def address(self, size: int) -> int:
        """Where ``size`` bytes begin, on the boundary of a register."""
        if self.size < size:
            with torch.inference_mode(False):
                self.memory = torch.empty(size + 64, dtype=torch.uint8, device="cpu")
            self.size, self.begin = size, -(-self.memory.data_ptr() // 64) * 64
        return self.begin
