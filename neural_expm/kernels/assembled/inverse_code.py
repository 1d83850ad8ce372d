"""The machine code of the inverse for one n and dtype: Gauss–Jordan elimination with partial pivoting, lane by lane.

Each lane chooses its own pivots: rows change places under a mask, where the square of the modulus is larger.  Matrices
come scaled to norm one, so that those squares neither overflow nor lose a pivot.

Source: Higham, *Accuracy and Stability of Numerical Algorithms*, section 14.4.
"""

from __future__ import annotations

from .lanes import Lanes, Shape
from .vectors import Vector
from .x86 import R9, R10, R15, RAX, RCX, RDI, RDX, RSI, Memory

BLOCK = 8  # registers of the pivot's row that are held at a time


class Program(Lanes):
    """Machine code for a shape."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        # Workspace, from behind the lanes' numbers and addresses: the scales, a column, the matrix and its inverse.
        self.factors = self.pair
        self.column = self.factors + 2 * self.register
        self.left = self.column + shape.n * self.entry
        self.right = self.left + self.member
        self.row = shape.n * self.entry

    def workspace(self) -> int:
        """Bytes that a part needs."""
        return self.right.offset + self.member

    def code(self) -> bytes:
        """A function of the address of a job, which inverts its matrices, each times its scale."""
        asm, n = self.asm, self.shape.n
        step = asm.name()
        for _ in self.groups():
            self.gather_scales(self.factors)
            self.load("matrices", self.left)
            self.identity(self.right, self.member)
            asm.constant(R15, n)
            asm.address(R10, self.left)  # row k of the matrix; the inverse lies self.member behind
            asm.constant(R9, 0)  # bytes from the beginning of a row to column k
            asm.label(step)
            self._choose_pivot()
            self._divide()
            self._eliminate()
            asm.plus_constant(R10, self.row)
            asm.plus_constant(R9, self.entry)
            asm.plus_constant(R15, -1)
            asm.jump(step, "unequal")
            asm.address(R10, self.right)
            self.store()
        return asm.finished()

    def _blocks(self) -> list[tuple[int, int]]:
        """Offset and number of the registers of each block of a row of the matrix, and of the inverse behind it."""
        whole = self.shape.n * self.shape.parts
        return [
            (half * self.member + at * self.register, min(BLOCK, whole - at))
            for half in (0, 1)
            for at in range(0, whole, BLOCK)
        ]

    def _square(self, to: Vector, at: Memory, spare: Vector) -> None:
        """To ← the squared modulus of an entry."""
        asm = self.asm
        asm.load(spare, at)
        asm.multiply(to, spare, spare)
        if self.shape.parts == 2:
            asm.load(spare, at + self.register)
            asm.multiply_add(to, spare, spare)

    def _choose_pivot(self) -> None:
        """Row k changes places with every later one whose entry of column k is larger, in the lanes where it is."""
        asm = self.asm
        rows, done = asm.name(), asm.name()
        own, other, spare, mask, a, b, c = range(7)
        asm.set(RSI, R10)
        asm.set(RDX, R15)
        asm.label(rows)
        asm.plus_constant(RSI, self.row)
        asm.plus_constant(RDX, -1)
        asm.jump(done, "equal")
        asm.set(RAX, R10)
        asm.plus(RAX, R9)
        self._square(own, Memory(RAX), spare)
        asm.set(RAX, RSI)
        asm.plus(RAX, R9)
        self._square(other, Memory(RAX), spare)
        asm.larger_than(mask, other, own)
        for offset, length in self._blocks():
            for i in range(length):
                k, row = Memory(R10, offset + i * self.register), Memory(RSI, offset + i * self.register)
                asm.load(a, k)
                asm.load(b, row)
                asm.blend(c, a, b, mask)
                asm.blend(b, b, a, mask)
                asm.store(k, c)
                asm.store(row, b)
        asm.jump(rows)
        asm.label(done)

    def _divide(self) -> None:
        """Row k over its pivot."""
        asm, parts = self.asm, self.shape.parts
        re, im, a, b, c, d = range(6)
        asm.set(RAX, R10)
        asm.plus(RAX, R9)
        if parts == 1:
            asm.load(a, self.all_lanes(1.0))
            asm.divide(re, a, Memory(RAX))
        else:
            self._square(a, Memory(RAX), b)
            asm.load(b, self.all_lanes(1.0))
            asm.divide(a, b, a)
            asm.multiply(re, a, Memory(RAX))
            asm.load(b, self.all_lanes(-1.0))
            asm.multiply(a, a, b)
            asm.multiply(im, a, Memory(RAX, self.register))
        for offset, length in self._blocks():
            for i in range(0, length, parts):
                at = Memory(R10, offset + i * self.register)
                if parts == 1:
                    asm.multiply(a, re, at)
                else:
                    asm.load(a, at)
                    asm.load(b, at + self.register)
                    asm.multiply(c, a, im)
                    asm.multiply(d, b, im)
                    asm.multiply(a, a, re)
                    asm.multiply_add(c, b, re)
                    asm.subtract(a, a, d)
                    asm.store(at + self.register, c)
                asm.store(at, a)

    def _eliminate(self) -> None:
        """Every other row minus row k times its entry of column k."""
        asm, n, parts = self.asm, self.shape.n, self.shape.parts
        copy = asm.name()
        asm.address(RSI, self.left)
        asm.plus(RSI, R9)
        asm.address(RDI, self.column)
        asm.constant(RCX, n)
        asm.label(copy)
        for part in range(parts):
            asm.load(0, Memory(RSI, part * self.register))
            asm.store(Memory(RDI, part * self.register), 0)
        asm.plus_constant(RSI, self.row)
        asm.plus_constant(RDI, self.entry)
        asm.plus_constant(RCX, -1)
        asm.jump(copy, "unequal")
        for offset, length in self._blocks():
            pivot, factor, sums = range(length), (BLOCK, BLOCK + 1), (BLOCK + 2, BLOCK + 3)
            rows, own = asm.name(), asm.name()
            for i in pivot:
                asm.load(i, Memory(R10, offset + i * self.register))
            asm.address(RSI, self.left + offset)
            asm.address(RDI, self.column)
            asm.set(RDX, R10)
            asm.plus_constant(RDX, offset)
            asm.constant(RCX, n)
            asm.label(rows)
            asm.compare(RSI, RDX)
            asm.jump(own, "equal")
            for part in range(parts):
                asm.load(factor[part], Memory(RDI, part * self.register))
            for i in range(0, length, parts):
                for part in range(parts):
                    asm.load(sums[part], Memory(RSI, (i + part) * self.register))
                asm.multiply_subtract(sums[0], factor[0], i)
                if parts == 2:
                    asm.multiply_add(sums[0], factor[1], i + 1)
                    asm.multiply_subtract(sums[1], factor[0], i + 1)
                    asm.multiply_subtract(sums[1], factor[1], i)
                for part in range(parts):
                    asm.store(Memory(RSI, (i + part) * self.register), sums[part])
            asm.label(own)
            asm.plus_constant(RSI, self.row)
            asm.plus_constant(RDI, self.entry)
            asm.plus_constant(RCX, -1)
            asm.jump(rows, "unequal")
