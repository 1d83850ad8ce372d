"""What a program is made for, and what it works on."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from .x86 import RBX, Memory


class Job(ctypes.Structure):
    """What a program works on; threads that call it with the same job share the work.

    Attributes:
        ticket: parts begun so far: a thread takes the next one until there are no more.
        threads: begun so far: each has a workspace of its own.
        parts, begins: of the batch, how many; address of the first matrix of each and the end of the last one.
        first, end: the same for a single part.
        matrices, matrices_step: address; bytes from one to the next.
        directions, directions_step: likewise, of a derivative.
        out, out_step: likewise.
        companions, companions_step: likewise, of what a pass hands to the next one besides its result.
        rows: address of the int64 indices of the matrices; null for all.
        last: where the last matrix is among them.
        workspace, workspace_step: address, on the boundary of a register; bytes of a thread.
        weights: address of the stages of a composition, each number in all lanes of a register.
        stages, certified: of a composition, how many, and whether their certificates are wanted.
        radii: address of 1, −1 and the radii of the rungs, each in all lanes of a register.
        rungs, reached, least: how many rungs there are, how many radii are to be looked at, and the rung that
            derivatives take at least.
        networks: address of the ``NETWORK`` of each rung: address of its weights, its products and its squarings.
        levels: address of the rung of each matrix, bytes; null where nobody wants them.
        outside: becomes 1 where no rung serves a matrix.
        scales: address of the factors of the matrices; null to take them as they are.
        notes, notes_step: address of the first note of each matrix; bytes to the second ones.
    """

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("ticket", "threads", "parts", "begins", "first", "end"),
            *("matrices", "matrices_step", "directions", "directions_step", "out", "out_step"),
            *("companions", "companions_step"),
            *("rows", "last", "workspace", "workspace_step"),
            *("weights", "stages", "certified"),
            *("radii", "rungs", "reached", "least", "networks", "levels", "outside"),
            *("scales", "notes", "notes_step"),
        )
    )


AT = {name: Memory(RBX, getattr(Job, name).offset) for name, *_ in Job._fields_}


@dataclass(frozen=True)
class Shape:
    """What machine code is made for.

    Attributes:
        n: size.
        double, complex: the field.
        members: 1 for the value; 2 for the derivative, beside the value.
        transposed, conjugate: of A, as it lies in memory.
        wide: for AVX-512; else for AVX2.
    """

    n: int
    double: bool
    complex: bool
    members: int
    transposed: bool
    conjugate: bool
    wide: bool

    @property
    def dtype(self) -> torch.dtype:
        """The field, as torch has it."""
        real = torch.float64 if self.double else torch.float32
        return real.to_complex() if self.complex else real

    @property
    def parts(self) -> int:
        """Reals of an entry."""
        return 2 if self.complex else 1
