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

from collections.abc import Iterator

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
        self.inverse = numbers + 7 * self.register  # of the pivot
        self.pivots = self.inverse + self.entry
        self.column = self.pivots + shape.n * self.register
        self.row = shape.n * self.entry
        tokens = self.column + self.row
        self.X, self.W, self.H, self.Y = (tokens + i * self.token for i in range(4))
        self.V = self.H  # the inverse, while there is no W²
        self.products = self.Y, self.Y + self.member

    def workspace(self) -> int:
        """Bytes that a thread needs."""
        return self.products[1].offset + self.member

    def code(self) -> bytes:
        """A function of the address of a job, which writes signs or derivatives; its stages are the most steps."""
        asm, pairs = self.asm, self.shape.members == 2
        for _ in self.groups():
            self.unscaled(self.factors)
            self.load("matrices", self.X)
            self._iterate(pairs=False)
            self._note()
            if pairs:
                self._project()
                self._iterate(pairs=True)
                self.tangent(R10, self.W, self.H)
                asm.plus_constant(R10, self.member)
            self.store("out", R10)
        self.multiplication(self.multiply, accumulate=False)
        if pairs:
            self.multiplication(self.multiply_add, accumulate=True)
        self.measurement()
        self.any_above()
        return asm.finished()

    def _iterate(self, pairs: bool) -> None:
        """From X, or from it and a direction behind it, to the sign, or to both; R10 points there, and W = S²."""
        asm = self.asm
        step, near, finish = asm.name(), asm.name(), asm.name()
        asm.zero(0)
        asm.store(self.roundings, 0)
        asm.load(0, self.all_lanes(2.0))
        asm.store(self.distance, 0)
        asm.get(R11, AT["stages"])
        asm.label(step)
        self._step(pairs)
        asm.plus_constant(R11, -1)
        asm.get(RAX, AT["stages"])
        asm.plus_constant(RAX, -EARLY)
        asm.compare(R11, RAX)
        asm.jump(step, "greater")
        self._look()
        asm.compare_constant(R11, 0)
        asm.jump(near, "equal")
        self.any_above_one(self.distance)
        asm.jump(step, "unequal")
        asm.label(near)
        asm.address(R10, self.X)
        asm.address(R15, self.Y)
        if pairs:
            self.product(R10, R10, self.W)  # a look is at the value alone
        asm.constant(R11, FINISHING)
        asm.label(finish)
        self._finish(pairs)
        asm.plus_constant(R11, -1)
        asm.jump(finish, "unequal")

    def _finish(self, pairs: bool) -> None:
        """X ← X(15I − 10W + 3W²)/8 and W ← X²; R10 points to X, R15 to room for the next one."""
        asm, product = self.asm, self.product if pairs else self.times
        product(self.W, self.W, self.H)
        for register, coefficient in enumerate(PADE):
            asm.load(register, self.all_lanes(coefficient))
        self.polynomial(self.W, self.H, 1 + pairs)
        product(R10, self.H, R15)
        asm.exchange(R10, R15)
        product(R10, R10, self.W)

    def _project(self) -> None:
        """X ← A again and behind it the direction, without the part that makes no difference to the sign at R10.

        On the way that part would grow by one over the distance of eigenvalues from the axis, and its rounding with it.
        """
        asm = self.asm
        sign = self.Y if FINISHING % 2 else self.X
        self.load("directions", sign + self.member)
        self.tangent(R10, self.W, self.H)
        if sign is not self.X:
            asm.load(0, self.all_lanes(1.0))
            self._scale(self.X + self.member, sign + self.member)
        self.load("matrices", self.X)

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
        self.combine(self.W)
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

    # --- a step -------------------------------------------------------------------------------------------------------

    def _step(self, pairs: bool) -> None:
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
        if pairs:
            self._differentiate()
        asm.load(0, self.alpha)
        asm.load(1, self.beta)
        asm.address(RSI, self.V)
        self.combine(self.X)
        self._count_roundings()

    def _look(self) -> None:
        """W ← X², and distance ← ‖W − I‖²/θ²."""
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
        self.combine(D)

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
        self._keep_column()
        self._eliminate()
        self._replace_column()
        asm.plus_constant(R10, self.row)
        asm.plus_constant(R9, self.entry)
        asm.plus_constant(R14, self.register)
        asm.plus_constant(R15, -1)
        asm.jump(step, "unequal")
        asm.label(back)
        asm.plus_constant(R9, -self.entry)
        asm.plus_constant(R14, -self.register)
        asm.plus_constant(R15, 1)
        self._exchange_columns()
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

    def _keep_column(self) -> None:
        """Column ← column k after rows have changed places, and in place of the pivot its inverse."""
        asm, parts, register = self.asm, self.shape.parts, self.register
        old, new, x, other = ((2 * i, 2 * i + 1)[:parts] for i in range(4))
        pivot, this, mask, one, size = range(8, 13)
        copy, ready = asm.name(), asm.name()
        asm.address(RSI, self.V)
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

    def _eliminate(self) -> None:
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
            asm.address(RSI, self.V)
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

    def _replace_column(self) -> None:
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
        asm.address(RSI, self.V)
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

    def _exchange_columns(self) -> None:
        """Column k changes places with the one that pivot k says."""
        asm, n, parts = self.asm, self.shape.n, self.shape.parts
        most = BLOCK if self.shape.wide else BLOCK // 2
        offsets = [e * self.row + part * self.register for e in range(n) for part in range(parts)]
        asm.address(RSI, self.V)
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
