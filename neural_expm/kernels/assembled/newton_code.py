"""The machine code of the sign by Newton's iteration (``kernels/newton.py``) for one n and dtype.

With s = 1/‖X‖ and V = (sX)⁻¹, of norm c, a step is N(X) = ½s√c·X + ½/√c·V.  Lanes go together: one whose X is near the
sign waits for the others, by the factors 1 and 0, so that no result depends on its neighbours.

The inverse is that of Gauss and Jordan, in place: step k leaves in column k what becomes of column k of the identity.
Each lane chooses its own pivots.  The rows that changed places do so by masks, and the columns of the inverse likewise,
in the opposite order.  Matrices come scaled to norm one, so that the squares of entries neither overflow nor lose a
pivot.

Source: Higham, *Accuracy and Stability of Numerical Algorithms*, section 14.4.
"""

from __future__ import annotations

from ..newton import EARLY, FINISHING, NEAR, PADE
from .lanes import AT, Shape
from .notes import NotingLanes
from .vectors import Vector
from .x86 import R9, R10, R11, R14, R15, RAX, RCX, RDI, RDX, RSI, Memory

BLOCK = 8  # registers of the pivot's row that are held at a time


class Program(NotingLanes):
    """Machine code for a shape."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        # Workspace, from behind the lanes' numbers and addresses: factors and numbers of the lanes, the pivots' rows, a
        # column, the tokens.
        self.factors = self.pair
        numbers = self.factors + 2 * self.register
        self.roundings, self.distance, self.c, self.c_root, self.s, self.alpha, self.beta = (
            numbers + i * self.register for i in range(7)
        )
        self.pivots = numbers + 7 * self.register
        self.column = self.pivots + shape.n * self.register
        self.row = shape.n * self.entry
        tokens = self.column + self.row
        self.X, self.W, self.H, self.Y = (tokens + i * self.token for i in range(4))
        self.V = self.H  # the inverse, while there is no W²
        self.products = self.Y, self.Y + self.member

    def workspace(self) -> int:
        """Bytes that a part needs."""
        return self.products[1].offset + self.member

    def code(self) -> bytes:
        """A function of the address of a job, which writes signs or derivatives; its stages are the most steps."""
        asm, pairs = self.asm, self.shape.members == 2
        step, near, finish = asm.name(), asm.name(), asm.name()
        for _ in self.groups():
            self.unscaled(self.factors)
            self.load("matrices", self.X)
            if pairs:
                self.load("directions", self.X + self.member)
            asm.zero(0)
            asm.store(self.roundings, 0)
            asm.load(0, self.all_lanes(2.0))
            asm.store(self.distance, 0)
            asm.get(R11, AT["stages"])
            asm.label(step)
            self._step()
            asm.plus_constant(R11, -1)
            asm.jump(near, "equal")
            asm.get(RAX, AT["stages"])
            asm.plus_constant(RAX, -EARLY)
            asm.compare(R11, RAX)
            asm.jump(step, "greater")
            self._look()
            self.any_above_one(self.distance)
            asm.jump(step, "unequal")
            asm.label(near)
            asm.address(R10, self.X)
            asm.address(R15, self.Y)
            self.product(R10, R10, self.W)
            asm.constant(R11, FINISHING)
            asm.label(finish)
            self._finish()
            asm.plus_constant(R11, -1)
            asm.jump(finish, "unequal")
            self._note()
            if pairs:
                asm.plus_constant(R10, self.member)
            self.store("out", R10)
        self.multiplication(self.multiply, accumulate=False)
        if pairs:
            self.multiplication(self.multiply_add, accumulate=True)
        self.measurement()
        self.any_above()
        return asm.finished()

    def _finish(self) -> None:
        """X ← X(15I − 10W + 3W²)/8 and W ← X²; R10 points to X, R15 to room for the next one."""
        asm = self.asm
        self.product(self.W, self.W, self.H)
        for register, coefficient in enumerate(PADE):
            asm.load(register, self.all_lanes(coefficient))
        self.polynomial(self.W, self.H)
        self.product(R10, self.H, R15)
        asm.exchange(R10, R15)
        self.product(R10, R10, self.W)

    def _note(self) -> None:
        """The ``Evidence``; R10 points to S, W = S²."""
        asm, A = self.asm, self.H
        self.measured(self.W)
        self._note_root(1, 0)
        self.measured(R10)
        self._note_root(0, 1)
        asm.load(0, self.roundings)
        self.note(0, 2)
        asm.address(R14, self.factors)
        self.load("matrices", A)
        self.measured(A)
        self._note_root(0, 3)
        self.times(A, R10, self.W)
        self.times(R10, A, R15)
        for register, factor in ((0, 1.0), (1, -1.0)):
            asm.load(register, self.all_lanes(factor))
        asm.address(RSI, Memory(R15))
        self._combine(self.W)
        self.measured(self.W)
        self._note_root(0, 4)

    def _note_root(self, register: Vector, which: int) -> None:
        self.asm.root(register, register)
        self.note(register, which)

    def _scale(self, to: Memory, source: Memory) -> None:
        """To ← source times vector 0."""
        asm = self.asm
        asm.address(RDI, to)
        asm.address(RSI, source)
        for block in self.over(self.member // self.register, 8):
            for b in range(block):
                asm.multiply(1, 0, Memory(RSI, b * self.register))
                asm.store(Memory(RDI, b * self.register), 1)

    def _combine(self, to: Memory) -> None:
        """To ← to times vector 0 plus what RSI points to times vector 1."""
        asm = self.asm
        asm.address(RDI, to)
        for block in self.over(self.member // self.register, 8):
            for b in range(block):
                asm.multiply(2, 0, Memory(RDI, b * self.register))
                asm.multiply_add(2, 1, Memory(RSI, b * self.register))
                asm.store(Memory(RDI, b * self.register), 2)

    # --- a step -------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """X ← N(X), and beside it D ← ½s√c·D − ½s/√c·VDV."""
        asm = self.asm
        self.measured(self.X)
        asm.root(0, 0)
        asm.load(1, self.all_lanes(1.0))
        asm.divide(0, 1, 0)
        asm.store(self.s, 0)
        self._scale(self.V, self.X)
        self._invert()
        self.measured(self.V)
        asm.root(0, 0)
        asm.store(self.c, 0)
        asm.root(2, 0)
        asm.store(self.c_root, 2)
        self._factors()
        if self.shape.members == 2:
            self._differentiate()
        asm.load(0, self.alpha)
        asm.load(1, self.beta)
        asm.address(RSI, self.V)
        self._combine(self.X)
        self._count_roundings()

    def _look(self) -> None:
        """Distance ← ‖X² − I‖²/θ²."""
        asm = self.asm
        self.times(self.X, self.X, self.W)
        self.measured(self.W)
        asm.load(0, self.all_lanes(NEAR**-2))
        asm.multiply(0, 0, 1)
        asm.store(self.distance, 0)

    def _factors(self) -> None:
        """Alpha ← ½s√c and beta ← ½/√c, with √c in vector 2; 1 and 0 for those that are near."""
        asm = self.asm
        alpha, beta, one, zero, mask, half = 0, 1, 3, 4, 5, 6
        asm.load(half, self.all_lanes(0.5))
        asm.divide(beta, half, 2)
        asm.multiply(alpha, half, 2)
        asm.multiply(alpha, alpha, self.s)
        asm.load(one, self.all_lanes(1.0))
        asm.zero(zero)
        self._near(mask, one, 7)
        asm.blend(alpha, alpha, one, mask)
        asm.blend(beta, beta, zero, mask)
        asm.store(self.alpha, alpha)
        asm.store(self.beta, beta)

    def _near(self, mask: Vector, one: Vector, spare: Vector) -> None:
        """Which lanes wait."""
        self.asm.load(spare, self.distance)
        self.asm.larger_than(mask, one, spare)

    def _count_roundings(self) -> None:
        """Roundings ← ((1 + c)/2 · roundings + c) √c/‖N‖, but for those that waited."""
        asm = self.asm
        roundings, c, before, one, mask = 0, 2, 3, 4, 5
        self.measured(self.X)
        asm.root(1, 0)  # ‖N‖
        asm.load(one, self.all_lanes(1.0))
        asm.load(c, self.c)
        asm.add(roundings, c, one)
        asm.load(before, self.all_lanes(0.5))
        asm.multiply(roundings, roundings, before)
        asm.load(before, self.roundings)
        asm.multiply(roundings, roundings, before)
        asm.add(roundings, roundings, c)
        asm.multiply(roundings, roundings, self.c_root)
        asm.divide(roundings, roundings, 1)
        self._near(mask, one, 6)
        asm.blend(roundings, roundings, before, mask)
        asm.store(self.roundings, roundings)

    def _differentiate(self) -> None:
        """D ← alpha·D − s·beta·VDV."""
        asm, D = self.asm, self.X + self.member
        self.times(self.V, D, self.products[0])
        self.times(self.products[0], self.V, self.products[1])
        asm.load(0, self.alpha)
        asm.load(1, self.all_lanes(-1.0))
        asm.multiply(1, 1, self.beta)
        asm.multiply(1, 1, self.s)
        asm.address(RSI, self.products[1])
        self._combine(D)

    # --- the inverse --------------------------------------------------------------------------------------------------

    def _invert(self) -> None:
        """V ← V⁻¹.

        R10 points to row k, R9 counts the bytes from the beginning of a row to column k, R14 points to pivot k, and R15
        counts the rows from k on.
        """
        asm, n = self.asm, self.shape.n
        step, back = asm.name(), asm.name()
        asm.constant(R15, n)
        asm.address(R10, self.V)
        asm.constant(R9, 0)
        asm.address(R14, self.pivots)
        asm.label(step)
        self._find_pivot()
        asm.set(RSI, R10)
        self._exchange(self.row, self.entry)
        self._divide()
        self._eliminate()
        asm.plus_constant(R10, self.row)
        asm.plus_constant(R9, self.entry)
        asm.plus_constant(R14, self.register)
        asm.plus_constant(R15, -1)
        asm.jump(step, "unequal")
        asm.label(back)
        asm.plus_constant(R9, -self.entry)
        asm.plus_constant(R14, -self.register)
        asm.plus_constant(R15, 1)
        asm.address(RSI, self.V)
        asm.plus(RSI, R9)
        self._exchange(self.entry, self.row)
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

    def _exchange(self, following: int, along: int) -> None:
        """The row or column at RSI changes places with the one that pivot k says, lane by lane.

        Args:
            following: bytes to the next row or column, of which there are R15 with this one.
            along: bytes from an entry to the next one.
        """
        asm, n, parts = self.asm, self.shape.n, self.shape.parts
        most = BLOCK if self.shape.wide else BLOCK // 2
        offsets = [e * along + part * self.register for e in range(n) for part in range(parts)]
        for first in range(0, n * parts, most):
            block = offsets[first : first + most]
            old, new = range(len(block)), range(len(block), 2 * len(block))
            pivot, this, entry, other, mask = range(2 * len(block), 2 * len(block) + 5)
            lines, done = asm.name(), asm.name()
            for i, offset in enumerate(block):
                asm.load(old[i], Memory(RSI, offset))
                asm.copy(new[i], old[i])
            asm.load(pivot, Memory(R14))
            asm.zero(this)
            asm.set(RDI, RSI)
            asm.set(RCX, R15)
            asm.label(lines)
            asm.plus_constant(RCX, -1)
            asm.jump(done, "equal")
            asm.plus_constant(RDI, following)
            asm.add(this, this, self.all_lanes(1.0))
            asm.equal(mask, pivot, this)
            for i, offset in enumerate(block):
                asm.load(entry, Memory(RDI, offset))
                asm.blend(new[i], new[i], entry, mask)
                asm.blend(other, entry, old[i], mask)
                asm.store(Memory(RDI, offset), other)
            asm.jump(lines)
            asm.label(done)
            for i, offset in enumerate(block):
                asm.store(Memory(RSI, offset), new[i])

    def _divide(self) -> None:
        """Row k over its pivot, in whose place stands 1."""
        asm, parts = self.asm, self.shape.parts
        re, im, a, b, c, d = range(6)
        asm.set(RAX, R10)
        asm.plus(RAX, R9)
        asm.load(a, self.all_lanes(1.0))
        if parts == 1:
            asm.divide(re, a, Memory(RAX))
        else:
            self._square(b, Memory(RAX), c)
            asm.divide(b, a, b)
            asm.multiply(re, b, Memory(RAX))
            asm.load(c, self.all_lanes(-1.0))
            asm.multiply(b, b, c)
            asm.multiply(im, b, Memory(RAX, self.register))
            asm.zero(b)
            asm.store(Memory(RAX, self.register), b)
        asm.store(Memory(RAX), a)
        for i in range(0, self.shape.n * parts, parts):
            at = Memory(R10, i * self.register)
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
        """Every other row, with 0 in column k, minus row k times the entry that was there."""
        asm, n, parts = self.asm, self.shape.n, self.shape.parts
        copy, pivotal = asm.name(), asm.name()
        asm.address(RSI, self.V)
        asm.plus(RSI, R9)
        asm.address(RDI, self.column)
        asm.set(RDX, R10)
        asm.plus(RDX, R9)
        asm.constant(RCX, n)
        asm.zero(1)
        asm.label(copy)
        asm.compare(RSI, RDX)
        asm.jump(pivotal, "equal")
        for part in range(parts):
            asm.load(0, Memory(RSI, part * self.register))
            asm.store(Memory(RDI, part * self.register), 0)
            asm.store(Memory(RSI, part * self.register), 1)
        asm.label(pivotal)
        asm.plus_constant(RSI, self.row)
        asm.plus_constant(RDI, self.entry)
        asm.plus_constant(RCX, -1)
        asm.jump(copy, "unequal")
        for first in range(0, n * parts, BLOCK):
            length, offset = min(BLOCK, n * parts - first), first * self.register
            factor, sums = (BLOCK, BLOCK + 1), (BLOCK + 2, BLOCK + 3)
            rows, own = asm.name(), asm.name()
            for i in range(length):
                asm.load(i, Memory(R10, offset + i * self.register))
            asm.address(RSI, self.V + offset)
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
