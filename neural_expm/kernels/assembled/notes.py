"""What programs have in common that note something of each matrix, for whoever called to decide upon."""

from __future__ import annotations

from .job import AT, Shape
from .lanes import Lanes
from .vectors import Vector
from .x86 import R8, R12, R14, RAX, RCX, RDI, RDX, RSI, Memory

# The bits of 1 in single precision, and their upper half in double.
ONE_SINGLE, ONE_DOUBLE = 0x3F800000, 0x3FF00000


class NotingLanes(Lanes):
    """The assembler of such a program."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.measure, self.above = self.asm.name(), self.asm.name()  # subroutines

    def unscaled(self, factors: Memory) -> None:
        """Matrices are taken as they are; R14 says so."""
        asm = self.asm
        for part, factor in enumerate((1.0, -1.0)):
            asm.load(0, self.all_lanes(factor))
            asm.store(factors + part * self.register, 0)
        asm.address(R14, factors)

    def _notes(self, which: int) -> None:
        """RDX ← where the notes of this kind begin."""
        asm = self.asm
        asm.get(RDX, AT["notes_step"])
        asm.constant(RAX, which)
        asm.times(RDX, RAX)
        asm.plus(RDX, AT["notes"])

    def note(self, register: Vector, which: int) -> None:
        """Write a number of each lane in the order of the job, whose rows the notes follow."""
        asm = self.asm
        self._notes(which)
        asm.constant(RAX, asm.entry_bytes)
        asm.times(RAX, R12)
        asm.plus(RDX, RAX)
        asm.store(Memory(RDX), register)

    def record(self, numbers: Memory, which: int) -> None:
        """Write a number of each lane to the place of its matrix in the batch."""
        self._notes(which)
        for own, of_matrix in self.numbers(numbers):
            self.asm.get(RCX, own, self.asm.entry_bytes)
            self.asm.put(of_matrix, RCX, self.asm.entry_bytes)

    def measured(self, token: int | Memory) -> None:
        """Vectors 0 and 1 ← ‖X‖_F² and ‖X − I‖_F² of each lane."""
        self.asm.address(RSI, token if isinstance(token, Memory) else Memory(token))
        self.asm.call(self.measure)

    def measurement(self) -> None:
        """Subroutine of :meth:`measured`.

        Diagonal entries apart: ‖X − I‖² from ‖X‖² would lose all its digits near I.
        """
        asm, n, parts = self.asm, self.shape.n, self.shape.parts
        on, shifted, minus, entry = range(4)
        # As many sums as hide how long an addition takes, and as many entries on their way to them.
        sums, entries = range(4, 10), range(10, 16)
        asm.label(self.measure)
        for register in (on, shifted, *sums):
            asm.zero(register)
        asm.load(minus, self.all_lanes(-1.0))

        def diagonal() -> None:
            asm.load(entry, Memory(RSI))
            asm.multiply_add(on, entry, entry)
            asm.add(entry, entry, minus)
            asm.multiply_add(shifted, entry, entry)
            if parts == 2:
                asm.load(entry, Memory(RSI, self.register))
                asm.multiply_add(sums[0], entry, entry)

        rows = asm.name()
        asm.constant(RCX, n - 1)
        asm.label(rows)
        diagonal()
        for e in range(parts, (n + 1) * parts):  # as far as the next diagonal entry
            x = entries[e % len(entries)]
            asm.load(x, Memory(RSI, e * self.register))
            asm.multiply_add(sums[e % len(sums)], x, x)
        asm.plus_constant(RSI, (n + 1) * self.entry)
        asm.plus_constant(RCX, -1)
        asm.jump(rows, "unequal")
        diagonal()
        for other in sums[1:]:
            asm.add(sums[0], sums[0], other)
        asm.add(1, shifted, sums[0])
        asm.add(0, on, sums[0])
        asm.back()

    def any_above_one(self, numbers: Memory) -> None:
        """Compare with zero whether the number of any lane exceeds 1: unequal if so; of NaN, anything."""
        self.asm.address(RSI, numbers)
        self.asm.call(self.above)
        self.asm.compare_constant(RAX, 0)

    def any_above(self) -> None:
        """Subroutine of :meth:`any_above_one`: by the bits, whose order is that of positive numbers."""
        asm = self.asm
        loop, found = asm.name(), asm.name()
        asm.label(self.above)
        if self.shape.double:
            asm.constant(R8, ONE_DOUBLE)
            asm.constant(RAX, 1 << 16)
            asm.times(R8, RAX)
            asm.times(R8, RAX)
        else:
            asm.constant(R8, ONE_SINGLE)
        asm.constant(RCX, asm.lanes)
        asm.label(loop)
        asm.get(RAX, Memory(RSI), asm.entry_bytes)
        asm.compare(RAX, R8)
        asm.jump(found, "greater")
        asm.plus_constant(RSI, asm.entry_bytes)
        asm.plus_constant(RCX, -1)
        asm.jump(loop, "unequal")
        asm.constant(RAX, 0)
        asm.back()
        asm.label(found)
        asm.constant(RAX, 1)
        asm.back()

    def combine(self, to: Memory) -> None:
        """To ← to times vector 0 plus what RSI points to times vector 1."""
        asm = self.asm
        asm.address(RDI, to)
        for block in self.over(self.member // self.register, 8):
            for b in range(block):
                asm.multiply(2, 0, Memory(RDI, b * self.register))
                asm.multiply_add(2, 1, Memory(RSI, b * self.register))
                asm.store(Memory(RDI, b * self.register), 2)

    def tangent(self, pair: int, left: Memory, both: Memory) -> None:
        """D ← ½(D − SDS) for the pair (S, D) that a register points to: see ``kernels/composition.py``."""
        asm, D = self.asm, Memory(pair, self.member)
        self.times(pair, D, left)
        self.times(left, pair, both)
        for register, factor in ((0, 0.5), (1, -0.5)):
            asm.load(register, self.all_lanes(factor))
        asm.address(RSI, both)
        self.combine(D)

    def polynomial(self, W: Memory, H: Memory, members: int) -> None:
        """H ← aI + bW + cH, of a pair for two members, with a, b, c in vectors 0, 1 and 2."""
        asm = self.asm
        asm.address(RSI, W)
        asm.address(RDI, H)
        for block in self.over(members * self.member // self.register, 8):
            for b in range(block):
                asm.multiply(3, 2, Memory(RDI, b * self.register))
                asm.multiply_add(3, 1, Memory(RSI, b * self.register))
                asm.store(Memory(RDI, b * self.register), 3)
        for i in range(self.shape.n):
            diagonal = H + i * (self.shape.n + 1) * self.entry
            asm.add(3, 0, diagonal)
            asm.store(diagonal, 3)
