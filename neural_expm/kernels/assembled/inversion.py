"""The machine code of the inverse: Gauss–Jordan elimination with partial pivoting, in place, lane by lane.

Step k leaves in column k what becomes of column k of the identity.  Each lane chooses its own pivots: the rows change
places by masks, and the columns of the inverse likewise, in the opposite order.  Whoever calls scales matrices to norm
one, so that the squares of entries neither overflow nor lose a pivot.

Source: Higham, *Accuracy and Stability of Numerical Algorithms*, section 14.4.
"""

from __future__ import annotations

from collections.abc import Iterator

from .lanes import Lanes
from .vectors import Vector
from .x86 import R9, R10, R14, R15, RCX, RDI, RDX, RSI, Memory

BLOCK = 8  # registers of the pivot's row that are held at a time


class Inversion(Lanes):
    """The assembler of a program that inverts."""

    def place_inversion(self, begin: Memory) -> Memory:
        """Take a part of the workspace for a pivot's inverse, the pivots' rows, and a column; returns where it ends."""
        n = self.shape.n
        self.inverse, self.row = begin, n * self.entry
        self.pivots = self.inverse + self.entry
        self.column = self.pivots + n * self.register
        return self.column + self.row

    def invert(self, matrix: Memory) -> None:
        """The matrix there ← its inverse.

        R10 points to row k, R9 counts the bytes from the beginning of a row to column k, R14 points to pivot k, and R15
        counts the rows from k on.
        """
        asm, n = self.asm, self.shape.n
        step, back = asm.name(), asm.name()
        asm.constant(R15, n)
        asm.address(R10, matrix)
        asm.constant(R9, 0)
        asm.address(R14, self.pivots)
        asm.label(step)
        self._find_pivot()
        self._keep_column(matrix)
        self._eliminate(matrix)
        self._replace_column(matrix)
        asm.plus_constant(R10, self.row)
        asm.plus_constant(R9, self.entry)
        asm.plus_constant(R14, self.register)
        asm.plus_constant(R15, -1)
        asm.jump(step, "unequal")
        asm.label(back)
        asm.plus_constant(R9, -self.entry)
        asm.plus_constant(R14, -self.register)
        asm.plus_constant(R15, 1)
        self._exchange_columns(matrix)
        asm.compare_constant(R15, n)
        asm.jump(back, "less")

    def _square(self, to: Vector, at: Memory, spare: Vector) -> None:
        """To ← the squared modulus of an entry."""
        asm = self.asm
        asm.load(spare, at)
        asm.multiply(to, spare, spare)
        if self.shape.parts == 2:
            asm.load(spare, at + self.register)
            asm.multiply_add(to, spare, spare)

    def _find_pivot(self) -> None:
        """Pivot k ← how many rows below row k the largest entry of column k lies."""
        asm = self.asm
        rows, done = asm.name(), asm.name()
        largest, pivot, this, square, spare, mask = range(6)
        asm.set(RSI, R10)
        asm.plus(RSI, R9)
        asm.set(RCX, R15)
        self._square(largest, Memory(RSI), spare)
        asm.zero(pivot)
        asm.zero(this)
        asm.label(rows)
        asm.plus_constant(RCX, -1)
        asm.jump(done, "equal")
        asm.plus_constant(RSI, self.row)
        asm.add(this, this, self.all_lanes(1.0))
        self._square(square, Memory(RSI), spare)
        asm.larger_than(mask, square, largest)
        asm.blend(largest, largest, square, mask)
        asm.blend(pivot, pivot, this, mask)
        asm.jump(rows)
        asm.label(done)
        asm.store(Memory(R14), pivot)

    def _below(self, pivot: Vector, this: Vector, mask: Vector, *moved: int) -> Iterator[None]:
        """A loop over the rows or columns after the first one, where ``mask`` says in which lanes it is the pivot's.

        Args:
            pivot, this: registers.
            moved: pairs of a register that moves along and by how many bytes.
        """
        asm, following, done = self.asm, self.asm.name(), self.asm.name()
        asm.load(pivot, Memory(R14))
        asm.zero(this)
        asm.set(RCX, R15)
        asm.label(following)
        asm.plus_constant(RCX, -1)
        asm.jump(done, "equal")
        for register, step in zip(moved[::2], moved[1::2], strict=True):
            asm.plus_constant(register, step)
        asm.add(this, this, self.all_lanes(1.0))
        asm.equal(mask, pivot, this)
        yield
        asm.jump(following)
        asm.label(done)

    def _keep_column(self, matrix: Memory) -> None:
        """Column ← column k after rows have changed places, and in place of the pivot its inverse."""
        asm, parts, register = self.asm, self.shape.parts, self.register
        old, new, x, other = ((2 * i, 2 * i + 1)[:parts] for i in range(4))
        pivot, this, mask, one, size = range(8, 13)
        copy, ready = asm.name(), asm.name()
        asm.address(RSI, matrix)
        asm.plus(RSI, R9)
        asm.address(RDI, self.column)
        asm.set(RDX, R10)
        asm.plus(RDX, R9)
        asm.label(copy)  # rows above stay where they are
        asm.compare(RSI, RDX)
        asm.jump(ready, "equal")
        for part in range(parts):
            asm.load(x[part], Memory(RSI, part * register))
            asm.store(Memory(RDI, part * register), x[part])
        asm.plus_constant(RSI, self.row)
        asm.plus_constant(RDI, self.entry)
        asm.jump(copy)
        asm.label(ready)
        asm.set(RDX, RDI)
        for part in range(parts):
            asm.load(old[part], Memory(RSI, part * register))
            asm.copy(new[part], old[part])
        for _ in self._below(pivot, this, mask, RSI, self.row, RDI, self.entry):
            for part in range(parts):
                asm.load(x[part], Memory(RSI, part * register))
                asm.blend(new[part], new[part], x[part], mask)
                asm.blend(other[part], x[part], old[part], mask)
                asm.store(Memory(RDI, part * register), other[part])
        asm.load(one, self.all_lanes(1.0))
        if parts == 1:
            asm.divide(new[0], one, new[0])
        else:
            asm.multiply(size, new[0], new[0])
            asm.multiply_add(size, new[1], new[1])
            asm.divide(one, one, size)
            asm.multiply(new[0], new[0], one)
            asm.load(size, self.all_lanes(-1.0))
            asm.multiply(one, one, size)
            asm.multiply(new[1], new[1], one)
        for part in range(parts):
            asm.store(Memory(RDX, part * register), new[part])
            asm.store(self.inverse + part * register, new[part])

    def _eliminate(self, matrix: Memory) -> None:
        """Row k changes places with the pivot's and is divided by it; from every other one it is taken off.

        Column k is left to be replaced.
        """
        asm, parts = self.asm, self.shape.parts
        whole, most = self.shape.n * parts, BLOCK if self.shape.wide else BLOCK // 2
        for first in range(0, whole, most):
            length, offset = min(most, whole - first), first * self.register
            old, new = list(range(length)), list(range(length, 2 * length))
            pivot, this, mask, x, factor = (
                2 * length,
                2 * length + 1,
                2 * length + 2,
                (2 * length + 3, 2 * length + 4),
                (2 * length + 5, 2 * length + 6),
            )
            above, ready = asm.name(), asm.name()
            for i in range(length):
                asm.load(old[i], Memory(R10, offset + i * self.register))
                asm.copy(new[i], old[i])
            asm.set(RSI, R10)
            for _ in self._below(pivot, this, mask, RSI, self.row):
                for i in range(length):
                    asm.load(x[0], Memory(RSI, offset + i * self.register))
                    asm.blend(new[i], new[i], x[0], mask)
            for part in range(parts):
                asm.load(factor[part], self.inverse + part * self.register)
            for i in range(0, length, parts):
                if parts == 2:
                    asm.multiply(x[0], new[i + 1], factor[1])
                    asm.multiply(x[1], new[i], factor[1])
                    asm.multiply_add(x[1], new[i + 1], factor[0])
                asm.multiply(new[i], new[i], factor[0])
                if parts == 2:
                    asm.subtract(new[i], new[i], x[0])
                    asm.copy(new[i + 1], x[1])
            asm.address(RSI, matrix)
            asm.address(RDI, self.column)
            asm.label(above)
            asm.compare(RSI, R10)
            asm.jump(ready, "equal")
            self._take_off(offset, new, x, factor)
            asm.plus_constant(RSI, self.row)
            asm.plus_constant(RDI, self.entry)
            asm.jump(above)
            asm.label(ready)
            for i in range(length):
                asm.store(Memory(R10, offset + i * self.register), new[i])
            for _ in self._below(pivot, this, mask, RSI, self.row, RDI, self.entry):
                self._take_off(offset, new, x, factor, old, mask)

    def _take_off(
        self,
        offset: int,
        row: list[Vector],
        x: tuple[Vector, Vector],
        factor: tuple[Vector, Vector],
        old: list[Vector] | None = None,
        mask: Vector = 0,
    ) -> None:
        """The row at RSI, or the old one where the mask says so, minus ``row`` times the factor at RDI."""
        asm, parts = self.asm, self.shape.parts
        for part in range(parts):
            asm.load(factor[part], Memory(RDI, part * self.register))
        for i in range(0, len(row), parts):
            for part in range(parts):
                asm.load(x[part], Memory(RSI, offset + (i + part) * self.register))
                if old is not None:
                    asm.blend(x[part], x[part], old[i + part], mask)
            asm.multiply_subtract(x[0], factor[0], row[i])
            if parts == 2:
                asm.multiply_add(x[0], factor[1], row[i + 1])
                asm.multiply_subtract(x[1], factor[0], row[i + 1])
                asm.multiply_subtract(x[1], factor[1], row[i])
            for part in range(parts):
                asm.store(Memory(RSI, offset + (i + part) * self.register), x[part])

    def _replace_column(self, matrix: Memory) -> None:
        """Column k ← what becomes of column k of the identity: the pivot's inverse, times minus the others' entries."""
        asm, parts = self.asm, self.shape.parts
        rows, own = asm.name(), asm.name()
        re, im, minus_re, minus_im, x, y, a, b = range(8)
        asm.load(re, self.inverse)
        asm.zero(x)
        asm.subtract(minus_re, x, re)
        if parts == 2:
            asm.load(im, self.inverse + self.register)
            asm.subtract(minus_im, x, im)
        asm.address(RSI, matrix)
        asm.plus(RSI, R9)
        asm.address(RDI, self.column)
        asm.constant(RCX, self.shape.n)
        asm.set(RDX, R10)
        asm.plus(RDX, R9)
        asm.label(rows)
        asm.compare(RSI, RDX)
        asm.jump(own, "equal")
        asm.load(x, Memory(RDI))
        asm.multiply(a, x, minus_re)
        if parts == 2:
            asm.load(y, Memory(RDI, self.register))
            asm.multiply(b, x, minus_im)
            asm.multiply_add(b, y, minus_re)
            asm.multiply_add(a, y, im)
            asm.store(Memory(RSI, self.register), b)
        asm.store(Memory(RSI), a)
        following = asm.name()
        asm.jump(following)
        asm.label(own)
        asm.store(Memory(RSI), re)
        if parts == 2:
            asm.store(Memory(RSI, self.register), im)
        asm.label(following)
        asm.plus_constant(RSI, self.row)
        asm.plus_constant(RDI, self.entry)
        asm.plus_constant(RCX, -1)
        asm.jump(rows, "unequal")

    def _exchange_columns(self, matrix: Memory) -> None:
        """Column k changes places with the one that pivot k says."""
        asm, n, parts = self.asm, self.shape.n, self.shape.parts
        most = BLOCK if self.shape.wide else BLOCK // 2
        offsets = [e * self.row + part * self.register for e in range(n) for part in range(parts)]
        asm.address(RSI, matrix)
        asm.plus(RSI, R9)
        for first in range(0, n * parts, most):
            block = offsets[first : first + most]
            old, new = range(len(block)), range(len(block), 2 * len(block))
            pivot, this, entry, other, mask = range(2 * len(block), 2 * len(block) + 5)
            for i, offset in enumerate(block):
                asm.load(old[i], Memory(RSI, offset))
                asm.copy(new[i], old[i])
            asm.set(RDI, RSI)
            for _ in self._below(pivot, this, mask, RDI, self.entry):
                for i, offset in enumerate(block):
                    asm.load(entry, Memory(RDI, offset))
                    asm.blend(new[i], new[i], entry, mask)
                    asm.blend(other, entry, old[i], mask)
                    asm.store(Memory(RDI, offset), other)
            for i, offset in enumerate(block):
                asm.store(Memory(RSI, offset), new[i])
