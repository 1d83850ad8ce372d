"""The machine code of exp and of its Fréchet derivative for one n and dtype: the same work as ``batched.cpp`` does.

A vector register holds the same entry of as many matrices as it has lanes.  For each group of so many matrices the code
loads them, lane by lane, into the residual stream, which stays in the first- or second-level cache; computes the heads,
the read-out and the squarings; and writes the results back.  Depth, weights and squarings are read at run time.

A group at the end of a part repeats the last matrix in its idle lanes, and writes the same result more than once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

from .assembled_transpose import transpose
from .x86 import (
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    RSI,
    Assembler,
    Memory,
)


class Job(ctypes.Structure):
    """What a program works on; threads that call it with the same job share the work.

    Attributes:
        ticket: parts begun so far: a thread takes the next one until there are no more.
        parts, begins: of the batch, how many; address of the first matrix of each and the end of the last one.
        matrices, matrices_step: address; bytes from one to the next.
        directions, directions_step: likewise, of a derivative.
        out, out_step: likewise.
        rows: address of the int64 indices of the matrices; null for all.
        last: where the last matrix is among them.
        workspace, workspace_step: address, on the boundary of a register; bytes of a part.
        weights: address of 2^−s, −2^−s, the read-out of I and ``EquivariantTransformer.packed``, each in all lanes of a
            register.
        products, squarings: of the network.
    """

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("ticket", "parts", "begins"),
            *("matrices", "matrices_step", "directions", "directions_step", "out", "out_step"),
            *("rows", "last", "workspace", "workspace_step"),
            *("weights", "products", "squarings"),
        )
    )


_AT = {name: Memory(RBX, getattr(Job, name).offset) for name, *_ in Job._fields_}


@dataclass(frozen=True)
class Shape:
    """What machine code is made for.

    Attributes:
        n: size.
        double, complex: the field.
        members: 1 for the value; 2 for the derivative, beside the value.
        transposed, conjugate: of A, as it lies in memory.
        wide: for AVX-512; else for AVX2.
    """

    n: int
    double: bool
    complex: bool
    members: int
    transposed: bool
    conjugate: bool
    wide: bool

    @property
    def parts(self) -> int:
        """Reals of an entry."""
        return 2 if self.complex else 1


class Program:
    """Machine code for a shape, with the layout of its workspace.

    Args:
        shape: n and so on.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape, self.asm = shape, Assembler(shape.wide, shape.double)
        self.register = self.asm.register_bytes
        self.entry = shape.parts * self.register  # bytes of one entry of all lanes
        self.member = shape.n**2 * self.entry
        self.token = shape.members * self.member
        # Workspace: number and address of each lane's matrix; scores and values; the stream.
        self.pair = Memory(RBP, -(-16 * self.asm.lanes // self.register) * self.register)
        self.stream = self.pair + 2 * self.token
        if shape.complex:
            self.tile = (2, 4) if shape.wide else (2, 2)
        else:
            self.tile = (4, 4) if shape.wide else (2, 4)

    def workspace(self, products: int) -> int:
        """Bytes that a part needs."""
        return self.stream.offset + (products + 1) * self.token

    def code(self) -> bytes:
        """A function of the address of a job, which computes the exponential or its derivative."""
        asm = self.asm
        self.multiply, self.multiply_add = asm.name(), asm.name()
        for _ in self._groups():
            asm.get(R14, _AT["weights"])
            self._load("matrices", self.stream)
            if self.shape.members == 2:
                self._load("directions", self.stream + self.member)
            self._product(self.stream, self.stream, self.stream + self.token)
            self._network()
            self._store()
        self._multiplication(self.multiply, accumulate=False)
        if self.shape.members == 2:
            self._multiplication(self.multiply_add, accumulate=True)
        return asm.finished()

    def norms(self) -> bytes:
        """A function of the address of a job, which writes ‖A‖_F of each matrix times the first weight.

        The last group of a batch writes as many numbers as there are lanes.
        """
        asm = self.asm
        for _ in self._groups():
            asm.get(R14, _AT["weights"])
            self._load("matrices", self.stream)
            sums = range(4)
            for register in sums:
                asm.zero(register)
            asm.address(RSI, self.stream)
            asm.address(RDI, self.stream)
            for block in self._over(self.member // self.register, len(sums)):
                for b in range(block):
                    asm.load(4 + b, Memory(RSI, b * self.register))
                    asm.multiply_add(sums[b], 4 + b, 4 + b)
            for register in sums[1:]:
                asm.add(0, 0, register)
            asm.root(0, 0)
            asm.get(RAX, _AT["out"])
            asm.set(RCX, R12)
            asm.constant(RDX, asm.entry_bytes)
            asm.times(RCX, RDX)
            asm.plus(RAX, RCX)
            asm.store(Memory(RAX), 0)
        return asm.finished()

    def _groups(self) -> Iterator[None]:
        """A function that takes parts of a job and goes through the groups of each; R12 is the first matrix of one."""
        asm = self.asm
        part, group, done = (asm.name() for _ in range(3))
        asm.enter()
        asm.set(RBX, RDI)
        asm.label(part)
        asm.constant(RAX, 1)
        asm.fetch_and_add(_AT["ticket"], RAX)
        asm.compare(RAX, _AT["parts"])
        asm.jump(done, "at_least")
        asm.get(RBP, _AT["workspace_step"])
        asm.times(RBP, RAX)
        asm.plus(RBP, _AT["workspace"])
        asm.get(RCX, _AT["begins"])
        asm.get(R12, Memory(RCX, 0, index=RAX))
        asm.get(R13, Memory(RCX, 8, index=RAX))
        asm.label(group)
        asm.compare(R12, R13)
        asm.jump(part, "at_least")
        self._indices()
        yield
        asm.plus_constant(R12, asm.lanes)
        asm.jump(group)
        asm.label(done)
        asm.leave_vectors()
        asm.leave()

    # --- matrices in and out ------------------------------------------------------------------------------------------

    def _indices(self) -> None:
        """Which matrix each lane has: R12 + lane, at most the last one, and from there through ``rows``."""
        asm = self.asm
        loop, direct = asm.name(), asm.name()
        asm.get(RCX, _AT["last"])
        asm.get(RDX, _AT["rows"])
        asm.constant(R8, 0)
        asm.label(loop)
        asm.set(RAX, R12)
        asm.plus(RAX, R8)
        asm.compare(RAX, RCX)
        asm.set_if("greater", RAX, RCX)
        asm.compare_constant(RDX, 0)
        asm.jump(direct, "equal")
        asm.get(RAX, Memory(RDX, 0, index=RAX))
        asm.label(direct)
        asm.put(Memory(RBP, 0, index=R8), RAX)
        asm.plus_constant(R8, 1)
        asm.compare_constant(R8, asm.lanes)
        asm.jump(loop, "less")

    def _pointers(self, batch: str) -> None:
        """Where the matrix of each lane begins."""
        asm, loop = self.asm, self.asm.name()
        asm.get(RDX, _AT[batch])
        asm.get(RCX, _AT[batch + "_step"])
        asm.constant(R8, 0)
        asm.label(loop)
        asm.get(RAX, Memory(RBP, 0, index=R8))
        asm.times(RAX, RCX)
        asm.plus(RAX, RDX)
        asm.put(Memory(RBP, 8 * asm.lanes, index=R8), RAX)
        asm.plus_constant(R8, 1)
        asm.compare_constant(R8, asm.lanes)
        asm.jump(loop, "less")

    def _pieces(self) -> Iterator[int]:
        """A loop over the reals of a matrix, a register's worth at a time, then the rest.

        RCX counts eights of bytes of a matrix, RDX points into its token.
        """
        asm = self.asm
        whole, rest = divmod(self.shape.n**2 * self.shape.parts, asm.lanes)
        asm.constant(RCX, 0)
        if whole:
            loop = asm.name()
            asm.label(loop)
            yield asm.lanes
            asm.plus_constant(RDX, asm.lanes * self.register)
            asm.plus_constant(RCX, self.register // 8)
            asm.compare_constant(RCX, whole * self.register // 8)
            asm.jump(loop, "less")
        if rest:
            yield rest

    def _load(self, batch: str, to: Memory) -> None:
        """The matrices of the lanes, over 2^s."""
        asm, n, parts, lanes = self.asm, self.shape.n, self.shape.parts, self.asm.lanes
        transposed, conjugate = (
            batch == "matrices" and x for x in (self.shape.transposed, self.shape.conjugate)
        )
        self._pointers(batch)
        asm.address(RDX, to)
        rows, spare = list(range(lanes)), list(range(lanes, lanes + 4))
        for length in self._pieces():
            if length < lanes:
                asm.choose(length, spare[3])
            for lane in range(lanes):
                asm.get(RAX, Memory(RBP, 8 * (lanes + lane)))
                if length < lanes:
                    asm.load_some(rows[lane], Memory(RAX, 0, index=RCX), spare[3])
                else:
                    asm.load(rows[lane], Memory(RAX, 0, index=RCX))
            found = transpose(asm, rows, spare[:3], length)
            factors = [register for register in (*rows, *spare) if register not in found[:length]][:parts]
            for part, register in enumerate(factors):
                asm.load(register, Memory(R14, (conjugate and part) * self.register))
            for e in range(length):
                asm.multiply(found[e], found[e], factors[e % parts])
                asm.store(Memory(RDX, e * self.register), found[e])
        if transposed:
            for i in range(n):
                for j in range(i):
                    self._swap(to + (i * n + j) * self.entry, to + (j * n + i) * self.entry)

    def _swap(self, a: Memory, b: Memory) -> None:
        for part in range(self.shape.parts):
            self.asm.load(0, a + part * self.register)
            self.asm.load(1, b + part * self.register)
            self.asm.store(b + part * self.register, 0)
            self.asm.store(a + part * self.register, 1)

    def _store(self) -> None:
        """The results, from where R10 points."""
        asm, lanes = self.asm, self.asm.lanes
        self._pointers("out")
        asm.set(RDX, R10)
        rows, spare = list(range(lanes)), list(range(lanes, lanes + 4))
        for length in self._pieces():
            for e in range(length):
                asm.load(rows[e], Memory(RDX, e * self.register))
            found = transpose(asm, rows, spare[:3], lanes)
            mask = next(register for register in (*rows, *spare) if register not in found)
            if length < lanes:
                asm.choose(length, mask)
            for lane in range(lanes):
                asm.get(RAX, Memory(RBP, 8 * (lanes + lane)))
                if length < lanes:
                    asm.store_some(Memory(RAX, 0, index=RCX), found[lane], mask)
                else:
                    asm.store(Memory(RAX, 0, index=RCX), found[lane])

    # --- the network --------------------------------------------------------------------------------------------------

    def _network(self) -> None:
        """Heads, read-out and squarings; R10 then points to the result."""
        asm, shape = self.asm, self.shape
        heads, readout, squaring, done = (asm.name() for _ in range(4))
        asm.plus_constant(R14, 3 * self.register)
        asm.constant(R15, 2)
        asm.address(R11, self.stream + 2 * self.token)
        asm.label(heads)
        asm.compare(R15, _AT["products"])
        asm.jump(readout, "greater")
        self._combine(2)
        self._product(self.pair, self.pair + self.token, R11)
        asm.plus_constant(R11, self.token)
        asm.plus_constant(R15, 1)
        asm.jump(heads)
        asm.label(readout)
        self._combine(1)
        asm.get(RAX, _AT["weights"])
        asm.load(0, Memory(RAX, 2 * self.register))
        for i in range(shape.n):
            diagonal = self.pair + i * (shape.n + 1) * self.entry
            asm.add(1, 0, diagonal)
            asm.store(diagonal, 1)
        asm.address(R10, self.pair)
        asm.address(R11, self.pair + self.token)
        asm.get(R15, _AT["squarings"])
        asm.label(squaring)
        asm.compare_constant(R15, 0)
        asm.jump(done, "equal")
        self._product(R10, R10, R11)
        asm.exchange(R10, R11)
        asm.plus_constant(R15, -1)
        asm.jump(squaring)
        asm.label(done)
        if shape.members == 2:
            asm.plus_constant(R10, self.member)

    def _over(self, length: int, most: int) -> Iterator[int]:
        """Blocks of ``most`` registers in a loop that moves RSI and RDI along them, then the rest; RCX counts."""
        asm = self.asm
        times, rest = divmod(length, most)
        if times:
            loop = asm.name()
            asm.constant(RCX, times)
            asm.label(loop)
            yield most
            asm.plus_constant(RDI, most * self.register)
            asm.plus_constant(RSI, most * self.register)
            asm.plus_constant(RCX, -1)
            asm.jump(loop, "unequal")
        if rest:
            yield rest

    def _combine(self, outputs: int) -> None:
        """The pair, or its first half, ← weighted sums of the first R15 tokens; R14 moves past the weights."""
        asm = self.asm
        most = 8 if self.shape.wide else 4
        asm.set(R9, R15)
        asm.address(RSI, self.stream)
        asm.address(RDI, self.pair)
        asm.constant(RDX, self.register)
        asm.times(R9, RDX)  # from the weights of one output to those of the next
        for block in self._over(self.token // self.register, most):
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

    # --- products -----------------------------------------------------------------------------------------------------

    def _product(self, X: int | Memory, Y: int | Memory, Z: int | Memory) -> None:
        """Z ← X Y, of pairs (X₀Y₀, X₁Y₀ + X₀Y₁)."""
        calls = [(0, 0, 0, self.multiply)]
        if self.shape.members == 2:
            calls += [(1, 0, 1, self.multiply), (0, 1, 1, self.multiply_add)]
        for x, y, z, subroutine in calls:
            for register, operand, member in ((RSI, X, x), (RDX, Y, y), (RDI, Z, z)):
                at = operand if isinstance(operand, Memory) else Memory(operand)
                self.asm.address(register, at + member * self.member)
            self.asm.call(subroutine)

    def _multiplication(self, name: str, accumulate: bool) -> None:
        """Subroutine: the matrices at RDI ← those at RSI · those at RDX, or that added."""
        self.asm.label(name)
        n, (high, broad) = self.shape.n, self.tile
        for i in range(0, n, high):
            for j in range(0, n, broad):
                self._tile(i, j, min(high, n - i), min(broad, n - j), accumulate)
        self.asm.back()

    def _tile(self, i: int, j: int, high: int, broad: int, accumulate: bool) -> None:
        """Entries i … of the rows and j … of the columns of a product, in registers."""
        asm, n, parts, entry = self.asm, self.shape.n, self.shape.parts, self.entry
        sums = [
            [[(r * broad + c) * parts + p for p in range(parts)] for c in range(broad)] for r in range(high)
        ]
        first = high * broad * parts
        ys = [[first + c * parts + p for p in range(parts)] for c in range(broad)]
        xs = [first + broad * parts + p for p in range(parts)]
        result = [
            (sums[r][c][p], Memory(RDI, ((i + r) * n + j + c) * entry + p * self.register))
            for r in range(high)
            for c in range(broad)
            for p in range(parts)
        ]
        for register, at in result:
            if accumulate:
                asm.load(register, at)
            else:
                asm.zero(register)

        def step(X: Memory, Y: Memory) -> None:
            for c in range(broad):
                for p in range(parts):
                    asm.load(ys[c][p], Y + (c * entry + p * self.register))
            for r in range(high):
                for p in range(parts):
                    asm.load(xs[p], X + (r * n * entry + p * self.register))
                for c in range(broad):
                    asm.multiply_add(sums[r][c][0], xs[0], ys[c][0])
                    if parts == 2:
                        asm.multiply_add(sums[r][c][1], xs[0], ys[c][1])
                        asm.multiply_subtract(sums[r][c][0], xs[1], ys[c][1])
                        asm.multiply_add(sums[r][c][1], xs[1], ys[c][0])

        X, Y = Memory(RSI, i * n * entry), Memory(RDX, j * entry)
        if n <= UNROLLED_N:
            for k in range(n):
                step(X + k * entry, Y + k * n * entry)
        else:
            loop = asm.name()
            asm.address(RAX, X)
            asm.address(R8, Y)
            asm.constant(RCX, n)
            asm.label(loop)
            step(Memory(RAX), Memory(R8))
            asm.plus_constant(RAX, entry)
            asm.plus_constant(R8, n * entry)
            asm.plus_constant(RCX, -1)
            asm.jump(loop, "unequal")
        for register, at in result:
            asm.store(at, register)


# Up to this n a product is one straight run of instructions.
UNROLLED_N = 4
