"""The machine code of exp and of its Fréchet derivative for one n and dtype: the same work as ``batched.cpp`` does.

While the next few matrices of a tile are alike, one rung computes them as they lie; others are sorted (``tiles.py``).
The residual stream of a register stays in the cache; weights, depth and squarings are read at run time.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..exponential_kernel import worth_sorting
from .job import AT
from .tiles import Tiles
from .x86 import R8, R9, R10, R11, R12, R14, R15, RAX, RCX, RDI, RDX, RSI, Memory


class Program(Tiles):
    """Machine code for a shape."""

    def code(self) -> bytes:
        """A function of the address of a job, which computes the exponential or its derivative."""
        asm = self.asm
        for _ in self.parts():
            for _ in self._tiles():
                for _ in self._alike():
                    self._network()
                    self.store(run=True)
                if self.shape.members == 1:
                    self._find_levels()
                else:
                    self._given_levels()
                self._sort()
                for _ in self._registers():
                    self.load("matrices", self.stream)
                    if self.shape.members == 2:
                        self.load("directions", self.stream + self.member)
                    self._network()
                    self.store()
        self.multiplication(self.multiply, accumulate=False)
        if self.shape.members == 2:
            self.multiplication(self.multiply_add, accumulate=True)
        return asm.finished()

    # --- matrices that are alike --------------------------------------------------------------------------------------

    def _alike(self) -> Iterator[None]:
        """Matrices at the beginning of a tile, as many at a time as there are lanes, that one rung suits; loaded.

        They are taken as they lie: for small ones to look for the rung of each, and to sort them, takes longer than to
        compute all.  R12 is then the first of the others, if there are any.
        """
        asm, value = self.asm, self.shape.members == 1
        group, following, others = asm.name(), asm.name(), asm.name()
        for batch in ("matrices", "out") if value else ("matrices", "directions", "out"):
            asm.get(RAX, AT[f"{batch}_step"])
            asm.compare_constant(RAX, self.matrix_bytes)
            asm.jump(others, "unequal")
        asm.label(group)
        asm.set(RAX, R12)
        asm.plus_constant(RAX, asm.lanes)
        asm.compare(RAX, self.tile_end)
        asm.jump(others, "greater")
        if value:
            self._level_by_norms(others)
        else:
            self._level_if_given(others)
        self._choose_network(RDX, R8)
        if value:
            self._tell_run(RDX)
            asm.get(RAX, AT["out"])
            asm.compare_constant(RAX, 0)
            asm.jump(following, "equal")  # only the levels are wanted
            self._scale()
        else:
            self.load("matrices", self.stream, run=True)
            self.load("directions", self.stream + self.member, run=True)
        yield
        asm.label(following)
        asm.plus_constant(R12, asm.lanes)
        asm.jump(group)
        asm.label(others)
        asm.compare(R12, self.tile_end)
        asm.jump(self.tile_done, "at_least")

    def _level_by_norms(self, others: str) -> None:
        """RDX ← the first rung that reaches all norms of a run, now in the stream, unscaled; or on to ``others``."""
        asm, rung, found = self.asm, self.asm.name(), self.asm.name()
        asm.get(R14, AT["radii"])
        self.load("matrices", self.stream, run=True)
        self._norm()
        asm.get(RSI, AT["radii"])
        asm.constant(RDX, 0)
        asm.constant(RDI, 0)  # the first that reaches any
        asm.label(rung)
        asm.compare(RDX, AT["reached"])
        asm.jump(found, "equal")
        asm.which_above(RAX, 0, Memory(RSI, 2 * self.register), spare=1)
        asm.compare_constant(RAX, 0)
        asm.jump(found, "equal")
        asm.plus_constant(RSI, self.register)
        asm.plus_constant(RDX, 1)
        asm.compare_constant(RAX, (1 << asm.lanes) - 1)
        asm.set_if("equal", RDI, RDX)
        asm.jump(rung)
        asm.label(found)
        asm.compare(RDX, AT["rungs"])
        asm.jump(others, "equal")
        for register, level in ((R8, RDX), (R9, RDI)):
            self._address_network(register, level)
        products, squarings = Memory(R9, 8), Memory(R9, 16)
        asm.get(RAX, Memory(R8, 16))
        asm.minus(RAX, squarings)
        asm.compare_constant(RAX, 1)
        asm.jump(others, "greater")  # each squaring too many costs a matrix half a digit
        asm.plus(RAX, Memory(R8, 8))
        asm.minus(RAX, products)
        asm.compare_constant(RAX, worth_sorting(self.shape.n, self.shape.dtype))
        asm.jump(others, "at_least")

    def _level_if_given(self, others: str) -> None:
        """RDX ← the level that all of a run have been given, or the least one for derivatives; or on to ``others``."""
        asm = self.asm
        asm.get(RSI, AT["levels"])
        asm.plus(RSI, R12)
        asm.get_byte(RDX, Memory(RSI))
        asm.constant(RCX, 0x01010101)
        asm.times(RCX, RDX)
        for lane in range(0, asm.lanes, 4):
            asm.get(RAX, Memory(RSI, lane), 4)
            asm.compare(RAX, RCX)
            asm.jump(others, "unequal")
        asm.compare(RDX, AT["rungs"])
        asm.jump(others, "at_least")
        asm.get(RAX, AT["least"])
        asm.compare(RDX, RAX)
        asm.set_if("less", RDX, RAX)

    def _scale(self) -> None:
        """The first token times the factor of the network."""
        asm, unscaled = self.asm, self.asm.name()
        asm.get(RAX, self.squarings)
        asm.compare_constant(RAX, 0)
        asm.jump(unscaled, "equal")
        asm.load(0, Memory(R14))
        asm.address(RSI, self.stream)
        asm.address(RDI, self.stream)
        for block in self.over(self.member // self.register, 8):
            for b in range(block):
                asm.multiply(1 + b, 0, Memory(RSI, b * self.register))
                asm.store(Memory(RDI, b * self.register), 1 + b)
        asm.label(unscaled)

    def _tell_run(self, level: int) -> None:
        """The matrices from R12 on, as many as there are lanes, have a level."""
        asm, done = self.asm, self.asm.name()
        asm.get(RAX, AT["levels"])
        asm.compare_constant(RAX, 0)
        asm.jump(done, "equal")
        asm.plus(RAX, R12)
        for lane in range(asm.lanes):
            asm.put_byte(Memory(RAX, lane), level)
        asm.label(done)

    # --- the network --------------------------------------------------------------------------------------------------

    def _network(self) -> None:
        """The square, heads, read-out and squarings; R10 then points to the result."""
        asm, shape = self.asm, self.shape
        self.product(self.stream, self.stream, self.stream + self.token)
        heads, readout, squaring, done = (asm.name() for _ in range(4))
        asm.plus_constant(R14, 3 * self.register)
        asm.constant(R15, 2)
        asm.address(R11, self.stream + 2 * self.token)
        asm.label(heads)
        asm.compare(R15, self.products)
        asm.jump(readout, "greater")
        self._combine(2)
        self.product(self.pair, self.pair + self.token, R11)
        asm.plus_constant(R11, self.token)
        asm.plus_constant(R15, 1)
        asm.jump(heads)
        asm.label(readout)
        self._combine(1)
        asm.get(RAX, self.weights)
        asm.load(0, Memory(RAX, 2 * self.register))
        for i in range(shape.n):
            diagonal = self.pair + i * (shape.n + 1) * self.entry
            asm.add(1, 0, diagonal)
            asm.store(diagonal, 1)
        asm.address(R10, self.pair)
        asm.address(R11, self.pair + self.token)
        asm.get(R15, self.squarings)
        asm.label(squaring)
        asm.compare_constant(R15, 0)
        asm.jump(done, "equal")
        self.product(R10, R10, R11)
        asm.exchange(R10, R11)
        asm.plus_constant(R15, -1)
        asm.jump(squaring)
        asm.label(done)
        if shape.members == 2:
            asm.plus_constant(R10, self.member)

    def _combine(self, outputs: int) -> None:
        """The pair, or its first half, ← weighted sums of the first R15 tokens; R14 moves past the weights."""
        asm = self.asm
        most = 8 if self.shape.wide else 4
        asm.set(R9, R15)
        asm.address(RSI, self.stream)
        asm.address(RDI, self.pair)
        asm.constant(RDX, self.register)
        asm.times(R9, RDX)  # from the weights of one output to those of the next
        for block in self.over(self.token // self.register, most):
            sums = [[o * block + b for b in range(block)] for o in range(outputs)]
            weights = [outputs * block + o for o in range(outputs)]
            value = weights[-1] + 1
            for register in (register for row in sums for register in row):
                asm.zero(register)
            loop = asm.name()
            asm.set(RAX, R14)
            asm.set(R8, RSI)
            asm.set(RDX, R15)
            asm.label(loop)
            asm.load(weights[0], Memory(RAX))
            if outputs == 2:
                asm.plus(RAX, R9)
                asm.load(weights[1], Memory(RAX))
                asm.minus(RAX, R9)
            for b in range(block):
                asm.load(value, Memory(R8, b * self.register))
                for o in range(outputs):
                    asm.multiply_add(sums[o][b], weights[o], value)
            asm.plus_constant(RAX, self.register)
            asm.plus_constant(R8, self.token)
            asm.plus_constant(RDX, -1)
            asm.jump(loop, "unequal")
            for o in range(outputs):
                for b in range(block):
                    asm.store(Memory(RDI, o * self.token + b * self.register), sums[o][b])
        for _ in range(outputs):
            asm.plus(R14, R9)
