"""The machine code of sign and the square root for one n and dtype: a pass of an odd composition (``composition.py``).

Matrices differ in how many passes they need, and lanes go together: whoever calls looks at the notes of a pass and
sends the matrices that want another one through the next.  A stage is X ← X h(W), W = X², h(w) = a + bw + cw²; coupled,
for the square root, W = ZX, X ← X h(W), Z ← h(W) Z.

The certificate of a stage is that the spectral radius of W is at most L = R².  It is kept as a ratio that must not
exceed one: the least of ‖W‖²/L², ‖W − I‖²/(L − 1)² and ‖W²‖²/L⁴, and where that leaves a lane open, of ‖W⁴‖²/L⁸ and
‖W⁸‖²/L¹⁶.  NaN is handed on: it is in the second operand of minima and maxima, which x86 returns then.
"""

from __future__ import annotations

from collections.abc import Iterator

from .lanes import AT, Lanes, Shape
from .vectors import Vector
from .x86 import R8, R9, R10, R11, R12, R14, R15, RAX, RCX, RDI, RDX, RSI, Memory

# What a table has for each stage: a, b, c and the factors of the five squared norms.
STAGE = 8
NOTES = 3  # of each matrix: ‖W − I‖² and ‖X‖² after the pass, and the largest ratio
# The bits of 1 in single precision, and their upper half in double.
ONE_SINGLE, ONE_DOUBLE = 0x3F800000, 0x3FF00000


class Program(Lanes):
    """Machine code for a shape.

    Args:
        coupled: for the square root.
    """

    def __init__(self, shape: Shape, coupled: bool) -> None:
        super().__init__(shape)
        self.coupled = coupled
        self.measure, self.open_lanes = self.asm.name(), self.asm.name()  # subroutines
        # Workspace, from where that of Lanes ends: 1/c and −1/c of each lane, its ratio, the largest one; the tokens.
        self.factors = self.pair
        self.ratio = self.factors + 2 * self.register
        self.lost = self.ratio + self.register
        tokens = self.lost + self.register
        self.X, self.W, self.H, self.spare, self.power, self.Z = (tokens + i * self.token for i in range(6))

    def workspace(self) -> int:
        """Bytes that a part needs."""
        return self.Z.offset + self.coupled * self.token

    # R10 points to X, R11 to room for the next one, R9 to Z.

    def bounds(self) -> bytes:
        """A function of the address of a job, which notes ‖A‖² and ‖A²‖²."""
        asm = self.asm
        for _ in self.groups():
            self._ones()
            self.load("matrices", self.X)
            self.product(self.X, self.X, self.W)
            for note, token in enumerate((self.X, self.W)):
                self._measure(token)
                self._note(0, note)
        self._subroutines()
        return asm.finished()

    def value(self) -> bytes:
        """A function of the address of a job, which sends its matrices through a pass and notes how they came out."""
        asm = self.asm
        for _ in self.groups():
            self._begin()
            asm.zero(0)
            asm.store(self.lost, 0)
            for _ in self._stages():
                self._certify()
            self._square()
            self._measure(self.W)
            self._note(1, 0)
            self._measure(R10)
            self._note(0, 1)
            asm.load(0, self.lost)
            self._note(0, 2)
            self.store("out", R10)
            if self.coupled:
                self.store("companions", R9)
        self._subroutines()
        return asm.finished()

    def frechet(self) -> bytes:
        """A function of the address of a job, which computes derivatives."""
        asm = self.asm
        for _ in self.groups():
            self._begin()
            for _ in self._stages():
                pass
            asm.plus_constant(R10, self.member)
            self.store("out", R10)
        self._subroutines()
        return asm.finished()

    def _stages(self) -> Iterator[None]:
        """All stages of the job; between the squares and the rest of each, R14 points to its numbers."""
        asm, stage, done = self.asm, self.asm.name(), self.asm.name()
        asm.get(R14, AT["weights"])
        asm.get(R15, AT["stages"])
        asm.label(stage)
        asm.compare_constant(R15, 0)
        asm.jump(done, "equal")
        self._square()
        self.product(self.W, self.W, self.H)
        yield
        self._advance()
        asm.plus_constant(R14, STAGE * self.register)
        asm.plus_constant(R15, -1)
        asm.jump(stage)
        asm.label(done)

    def _certify(self) -> None:
        """The ratio of a stage, given W and H = W², goes into the largest one of each lane."""
        asm, closed, unwanted = self.asm, self.asm.name(), self.asm.name()
        asm.get(RAX, AT["certified"])
        asm.compare_constant(RAX, 0)
        asm.jump(unwanted, "equal")
        self._measure(self.W)
        asm.multiply(0, 0, Memory(R14, 3 * self.register))
        asm.multiply(1, 1, Memory(R14, 4 * self.register))
        asm.smaller(0, 0, 1)
        asm.store(self.ratio, 0)
        powers: list[Memory | int] = [self.H, R11, self.power]  # of W: 2, 4 and 8
        for k, power in enumerate(powers):
            asm.call(self.open_lanes)
            asm.compare_constant(RAX, 0)
            asm.jump(closed, "equal")
            if k:
                self.product(powers[k - 1], powers[k - 1], power)
            self._measure(power)
            asm.multiply(0, 0, Memory(R14, (5 + k) * self.register))
            asm.load(1, self.ratio)
            asm.smaller(0, 1, 0)
            asm.store(self.ratio, 0)
        asm.label(closed)
        asm.load(0, self.lost)
        asm.load(1, self.ratio)
        asm.larger(0, 0, 1)
        asm.store(self.lost, 0)
        asm.label(unwanted)

    # --- a group ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """X ← the matrices times their scales, and Z ← I; without scales, both as an earlier pass left them."""
        asm = self.asm
        again, ready = asm.name(), asm.name()
        asm.get(RAX, AT["scales"])
        asm.compare_constant(RAX, 0)
        asm.jump(again, "equal")
        self.gather_scales(self.factors)
        if self.coupled:
            self.identity(self.Z, self.token)
        asm.jump(ready)
        asm.label(again)
        self._ones()
        if self.coupled and self.shape.members == 1:
            self.load("companions", self.Z)
        asm.label(ready)
        self.load("matrices", self.X)
        if self.shape.members == 2:
            self.load("directions", self.X + self.member)
        asm.address(R10, self.X)
        asm.address(R11, self.spare)
        if self.coupled:
            asm.address(R9, self.Z)

    def _ones(self) -> None:
        """Matrices are taken as they are; R14 says so."""
        asm = self.asm
        for part, factor in enumerate((1.0, -1.0)):
            asm.load(0, self.all_lanes(factor))
            asm.store(self.factors + part * self.register, 0)
        asm.address(R14, self.factors)

    def _square(self) -> None:
        """W ← X², or ZX."""
        self.product(R9 if self.coupled else R10, R10, self.W)

    def _advance(self) -> None:
        """A stage, given W and H = W²; R14 points to its numbers."""
        asm = self.asm
        for part in range(3):
            asm.load(part, Memory(R14, part * self.register))
        asm.address(RSI, self.W)
        asm.address(RDI, self.H)
        for block in self.over(self.token // self.register, 8):
            for b in range(block):
                asm.multiply(3, 2, Memory(RDI, b * self.register))
                asm.multiply_add(3, 1, Memory(RSI, b * self.register))
                asm.store(Memory(RDI, b * self.register), 3)
        for i in range(self.shape.n):
            diagonal = self.H + i * (self.shape.n + 1) * self.entry
            asm.add(3, 0, diagonal)
            asm.store(diagonal, 3)
        self.product(R10, self.H, R11)
        asm.exchange(R10, R11)
        if self.coupled:
            self.product(self.H, R9, R11)
            asm.exchange(R9, R11)

    def _note(self, register: Vector, which: int) -> None:
        """Write a number of each lane to its place among the notes."""
        asm = self.asm
        asm.get(RAX, AT["notes_step"])
        asm.constant(RCX, which)
        asm.times(RAX, RCX)
        asm.plus(RAX, AT["notes"])
        asm.set(RCX, R12)
        asm.constant(RDX, asm.entry_bytes)
        asm.times(RCX, RDX)
        asm.plus(RAX, RCX)
        asm.store(Memory(RAX), register)

    # --- subroutines --------------------------------------------------------------------------------------------------

    def _subroutines(self) -> None:
        self.multiplication(self.multiply, accumulate=False)
        if self.shape.members == 2:
            self.multiplication(self.multiply_add, accumulate=True)
            return
        self._measurement()
        self._openness()

    def _measure(self, token: int | Memory) -> None:
        """Vectors 0 and 1 ← ‖X‖_F² and ‖X − I‖_F² of each lane."""
        self.asm.address(RSI, token if isinstance(token, Memory) else Memory(token))
        self.asm.call(self.measure)

    def _measurement(self) -> None:
        """Diagonal entries apart: ‖X − I‖² from ‖X‖² would lose all its digits near I."""
        asm, n, parts = self.asm, self.shape.n, self.shape.parts
        on, shifted, minus, entry, off = 2, 3, 4, 5, (6, 7)
        asm.label(self.measure)
        for register in (on, shifted, *off):
            asm.zero(register)
        asm.load(minus, self.all_lanes(-1.0))

        def diagonal() -> None:
            asm.load(entry, Memory(RSI))
            asm.multiply_add(on, entry, entry)
            asm.add(entry, entry, minus)
            asm.multiply_add(shifted, entry, entry)
            if parts == 2:
                asm.load(entry, Memory(RSI, self.register))
                asm.multiply_add(off[0], entry, entry)

        rows = asm.name()
        asm.constant(RCX, n - 1)
        asm.label(rows)
        diagonal()
        for e in range(parts, (n + 1) * parts):  # as far as the next diagonal entry
            asm.load(entry + 3 + e % 4, Memory(RSI, e * self.register))
            asm.multiply_add(off[e % 2], entry + 3 + e % 4, entry + 3 + e % 4)
        asm.plus_constant(RSI, (n + 1) * self.entry)
        asm.plus_constant(RCX, -1)
        asm.jump(rows, "unequal")
        diagonal()
        asm.add(off[0], off[0], off[1])
        asm.add(0, on, off[0])
        asm.add(1, shifted, off[0])
        asm.back()

    def _openness(self) -> None:
        """RAX ← 1 where the ratio of any lane that is not lost exceeds 1, else 0.

        By the bits, whose order is that of positive numbers; NaN is lost in the end, whatever is said of it here.
        """
        asm = self.asm
        loop, following, found = asm.name(), asm.name(), asm.name()
        asm.label(self.open_lanes)
        if self.shape.double:
            asm.constant(R8, ONE_DOUBLE)
            asm.constant(RAX, 1 << 16)
            asm.times(R8, RAX)
            asm.times(R8, RAX)
        else:
            asm.constant(R8, ONE_SINGLE)
        asm.address(RSI, self.ratio)
        asm.address(RDI, self.lost)
        asm.constant(RCX, asm.lanes)
        asm.label(loop)
        asm.get(RAX, Memory(RSI), asm.entry_bytes)
        asm.compare(RAX, R8)
        asm.jump(following, "at_most")
        asm.get(RAX, Memory(RDI), asm.entry_bytes)
        asm.compare(RAX, R8)
        asm.jump(found, "at_most")
        asm.label(following)
        asm.plus_constant(RSI, asm.entry_bytes)
        asm.plus_constant(RDI, asm.entry_bytes)
        asm.plus_constant(RCX, -1)
        asm.jump(loop, "unequal")
        asm.constant(RAX, 0)
        asm.back()
        asm.label(found)
        asm.constant(RAX, 1)
        asm.back()
