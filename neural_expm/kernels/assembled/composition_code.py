"""The machine code of sign and the square root for one n and dtype: a pass of an odd composition (``composition.py``).

Matrices differ in how many passes they need, and lanes go together: whoever calls looks at the notes of a pass and
sends the matrices that want another one through the next.  A stage is X ← X h(W), W = X², h(w) = a + bw + cw²; coupled,
for the square root, W = ZX, X ← X h(W), Z ← h(W) Z.

The certificate of a stage is that the spectral radius of W is at most L = R².  It is kept as a ratio that must not
exceed one: the least of ‖W‖²/L², ‖W − I‖²/(L − 1)² and ‖W²‖²/L⁴, and where that leaves a lane open, of ‖W⁴‖²/L⁸ and
‖W⁸‖²/L¹⁶.  NaN is handed on: it is in the second operand of minima and maxima, which x86 returns then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from .job import AT, Shape
from .notes import NotingLanes
from .x86 import R9, R10, R11, R14, R15, RAX, RCX, RDI, RDX, RSI, Memory

# What a table has for each stage: a, b, c and the factors of the five squared norms.  Behind the last one stand 1 over
# the largest η that is taken, in units of max(1, ‖X‖²) and as it is.
STAGE = 8
NOTES = 2  # of each matrix


class Program(NotingLanes):
    """Machine code for a shape.

    Args:
        coupled: for the square root.
    """

    def __init__(self, shape: Shape, coupled: bool) -> None:
        super().__init__(shape)
        self.coupled = coupled
        # Workspace, from where that of the lanes ends: 1/c and −1/c of each lane, its ratio, the largest one, the ratio
        # where it still matters; the tokens.
        self.factors = self.pair
        self.ratio, self.lost, self.open = (self.factors + (2 + i) * self.register for i in range(3))
        tokens = self.open + self.register
        self.X, self.W, self.H, self.spare, self.power, self.Z = (tokens + i * self.token for i in range(6))

    def workspace(self) -> int:
        """Bytes that a thread needs."""
        return self.Z.offset + self.coupled * self.token

    # R10 points to X, R11 to room for the next one, R9 to Z.

    def bounds(self) -> bytes:
        """A function of the address of a job, which notes min(‖A‖, ‖A²‖^{1/2}) and the largest part of A − A*."""
        asm = self.asm
        for _ in self.groups():
            self.unscaled(self.factors)
            self.load("matrices", self.X)
            self.product(self.X, self.X, self.W)
            self.measured(self.W)
            asm.root(0, 0)
            asm.store(self.ratio, 0)
            self.measured(self.X)
            asm.smaller(0, 0, self.ratio)
            asm.root(0, 0)
            self.note(0, 0)
            self._departure(self.X)
            self.note(0, 1)
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
            self._judge()
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
            if not self.coupled:
                self.tangent(R10, self.W, self.H)
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
        self.measured(self.W)
        asm.multiply(0, 0, Memory(R14, 3 * self.register))
        asm.multiply(1, 1, Memory(R14, 4 * self.register))
        asm.smaller(0, 0, 1)
        asm.store(self.ratio, 0)
        powers: list[Memory | int] = [self.H, R11, self.power]  # of W: 2, 4 and 8
        for k, power in enumerate(powers):
            self._forget_lost()
            self.any_above_one(self.open)
            asm.jump(closed, "equal")
            if k:
                self.product(powers[k - 1], powers[k - 1], power)
            self.measured(power)
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

    def _forget_lost(self) -> None:
        """Open ← the ratios, 0 in lanes that are lost already."""
        asm = self.asm
        ratio, zero, lost, one, mask = range(5)
        asm.load(ratio, self.ratio)
        asm.zero(zero)
        asm.load(lost, self.lost)
        asm.load(one, self.all_lanes(1.0))
        asm.larger_than(mask, lost, one)
        asm.blend(ratio, ratio, zero, mask)
        asm.store(self.open, ratio)

    def _judge(self) -> None:
        """Record η = ‖W − I‖, infinite or NaN where the certificate is lost, and what it is of the most allowed."""
        asm = self.asm
        eta, size, lost, one, mask, verdict, x, zero = 2, 0, 3, 4, 5, 6, 7, 8
        self.measured(self.W)
        asm.root(eta, 1)
        asm.store(self.ratio, eta)
        self.measured(R10)
        asm.load(eta, self.ratio)
        asm.load(lost, self.lost)
        asm.load(one, self.all_lanes(1.0))
        asm.zero(zero)
        asm.load(x, self.all_lanes(math.inf))
        asm.larger_than(mask, lost, one)
        asm.blend(x, zero, x, mask)
        asm.add(eta, eta, x)
        asm.multiply_add(eta, lost, zero)  # NaN in one that is NaN
        asm.larger(x, one, size)
        asm.multiply(verdict, eta, Memory(R14))
        asm.divide(verdict, verdict, x)
        asm.multiply(x, eta, Memory(R14, self.register))
        asm.larger(verdict, x, verdict)
        asm.store(self.open, verdict)
        asm.store(self.ratio, eta)
        for which, number in enumerate((self.ratio, self.open)):
            self.record(number, which)

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
        self.unscaled(self.factors)
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

    def _square(self) -> None:
        """W ← X², or ZX."""
        self.product(R9 if self.coupled else R10, R10, self.W)

    def _advance(self) -> None:
        """A stage, given W and H = W²; R14 points to its numbers."""
        asm = self.asm
        for part in range(3):
            asm.load(part, Memory(R14, part * self.register))
        self.polynomial(self.W, self.H, self.shape.members)
        self.product(R10, self.H, R11)
        asm.exchange(R10, R11)
        if self.coupled:
            self.product(self.H, R9, R11)
            asm.exchange(R9, R11)

    def _departure(self, at: Memory) -> None:
        """Vector 0 ← the largest part of an entry of X − X* by modulus; NaN counts for nothing."""
        asm, n = self.asm, self.shape.n
        most, a, b, c, d, zero = range(6)
        row, entry = asm.name(), asm.name()
        asm.zero(most)
        asm.zero(zero)
        asm.address(RSI, at)
        asm.constant(RDX, n)
        asm.label(row)  # from the diagonal on, and down the column from there
        asm.set(RAX, RSI)
        asm.set(RDI, RSI)
        asm.set(RCX, RDX)
        asm.label(entry)
        for part in range(self.shape.parts):
            asm.load(a, Memory(RAX, part * self.register))
            asm.load(b, Memory(RDI, part * self.register))
            if part:
                asm.add(c, a, b)
                asm.subtract(d, zero, c)
            else:
                asm.subtract(c, a, b)
                asm.subtract(d, b, a)
            asm.larger(c, c, d)
            asm.larger(most, c, most)
        asm.plus_constant(RAX, self.entry)
        asm.plus_constant(RDI, n * self.entry)
        asm.plus_constant(RCX, -1)
        asm.jump(entry, "unequal")
        asm.plus_constant(RSI, (n + 1) * self.entry)
        asm.plus_constant(RDX, -1)
        asm.jump(row, "unequal")

    # --- subroutines --------------------------------------------------------------------------------------------------

    def _subroutines(self) -> None:
        self.multiplication(self.multiply, accumulate=False)
        if self.shape.members == 2:
            self.multiplication(self.multiply_add, accumulate=True)
            return
        self.measurement()
        self.any_above()
