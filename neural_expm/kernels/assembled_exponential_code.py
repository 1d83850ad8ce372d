"""The machine code of exp and of its Fréchet derivative for one n and dtype: the same work as ``batched.cpp`` does.

The residual stream of a group of matrices stays in the cache; depth, weights and squarings are read at run time.
"""

from __future__ import annotations

from .assembled_lanes import AT, Lanes
from .x86 import R8, R9, R10, R11, R12, R14, R15, RAX, RCX, RDI, RDX, RSI, Memory


class Program(Lanes):
    """Machine code for a shape."""

    def workspace(self, products: int) -> int:
        """Bytes that a part needs."""
        return self.stream.offset + (products + 1) * self.token

    def code(self) -> bytes:
        """A function of the address of a job, which computes the exponential or its derivative."""
        asm = self.asm
        for _ in self.groups():
            asm.get(R14, AT["weights"])
            self.load("matrices", self.stream)
            if self.shape.members == 2:
                self.load("directions", self.stream + self.member)
            self.product(self.stream, self.stream, self.stream + self.token)
            self._network()
            self.store()
        self.multiplication(self.multiply, accumulate=False)
        if self.shape.members == 2:
            self.multiplication(self.multiply_add, accumulate=True)
        return asm.finished()

    def norms(self) -> bytes:
        """A function of the address of a job, which writes ‖A‖_F of each matrix times the first weight.

        The last group of a batch writes as many numbers as there are lanes.
        """
        asm = self.asm
        for _ in self.groups():
            asm.get(R14, AT["weights"])
            self.load("matrices", self.stream)
            sums = range(4)
            for register in sums:
                asm.zero(register)
            asm.address(RSI, self.stream)
            asm.address(RDI, self.stream)
            for block in self.over(self.member // self.register, len(sums)):
                for b in range(block):
                    asm.load(4 + b, Memory(RSI, b * self.register))
                    asm.multiply_add(sums[b], 4 + b, 4 + b)
            for register in sums[1:]:
                asm.add(0, 0, register)
            asm.root(0, 0)
            asm.get(RAX, AT["out"])
            asm.set(RCX, R12)
            asm.constant(RDX, asm.entry_bytes)
            asm.times(RCX, RDX)
            asm.plus(RAX, RCX)
            asm.store(Memory(RAX), 0)
        return asm.finished()

    # --- the network --------------------------------------------------------------------------------------------------

    def _network(self) -> None:
        """Heads, read-out and squarings; R10 then points to the result."""
        asm, shape = self.asm, self.shape
        heads, readout, squaring, done = (asm.name() for _ in range(4))
        asm.plus_constant(R14, 3 * self.register)
        asm.constant(R15, 2)
        asm.address(R11, self.stream + 2 * self.token)
        asm.label(heads)
        asm.compare(R15, AT["products"])
        asm.jump(readout, "greater")
        self._combine(2)
        self.product(self.pair, self.pair + self.token, R11)
        asm.plus_constant(R11, self.token)
        asm.plus_constant(R15, 1)
        asm.jump(heads)
        asm.label(readout)
        self._combine(1)
        asm.get(RAX, AT["weights"])
        asm.load(0, Memory(RAX, 2 * self.register))
        for i in range(shape.n):
            diagonal = self.pair + i * (shape.n + 1) * self.entry
            asm.add(1, 0, diagonal)
            asm.store(diagonal, 1)
        asm.address(R10, self.pair)
        asm.address(R11, self.pair + self.token)
        asm.get(R15, AT["squarings"])
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
