"""The machine code of the sign by Newton's iteration (``kernels/newton.py``) for one n and dtype.

With s = 1/‖X‖ and V = (sX)⁻¹, of norm c, a step is N(X) = ½s√c·X + ½/√c·V.  Lanes go together: one whose X is near the
sign waits for the others, by the factors 1 and 0, so that no result depends on its neighbours.
"""

from __future__ import annotations

from ..newton import EARLY, FINISHING, NEAR, PADE
from .inversion import Inversion
from .job import AT, Shape
from .notes import NotingLanes
from .vectors import Vector
from .x86 import R10, R11, R14, R15, RAX, RDI, RSI, Memory


class Program(Inversion, NotingLanes):
    """Machine code for a shape."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        # Workspace, from behind the lanes' numbers and addresses: factors and numbers of the lanes, what an inverse
        # needs, the tokens.
        self.factors = self.pair
        numbers = self.factors + 2 * self.register
        self.roundings, self.distance, self.c, self.c_root, self.s, self.alpha, self.beta = (
            numbers + i * self.register for i in range(7)
        )
        tokens = self.place_inversion(numbers + 7 * self.register)
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
        self.invert(self.V)
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
