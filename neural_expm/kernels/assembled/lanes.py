"""What programs of many small matrices have in common: a register holds the same entry of as many as it has lanes.

For each group of so many matrices a program loads them, lane by lane, into a workspace that stays in the first- or
second-level cache, computes there, and writes the results back.  No operation mixes lanes.  A group at the end of a
batch repeats the last matrix in its idle lanes, and writes the same result more than once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .job import AT, Shape
from .transpose import transpose
from .vectors import Assembler, Constant
from .x86 import R8, R10, R12, R13, R14, RAX, RBP, RBX, RCX, RDI, RDX, RSI, Memory

# Up to this n a product is one straight run of instructions.
UNROLLED_N = 4


class Lanes:
    """The assembler of a program, the layout of its workspace, and what every program does.

    Registers: RBX is the job, RBP the workspace of the thread, R12 the first matrix of the group or tile, R13 the end
    of the part, R14 the numbers to come; R9, R10, R11 and R15 belong to the program, the others are for the moment.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape, self.asm = shape, Assembler(shape.wide, shape.double)
        self.multiply, self.multiply_add = self.asm.name(), self.asm.name()  # subroutines
        self.register = self.asm.register_bytes
        self.entry = shape.parts * self.register  # bytes of one entry of all lanes
        self.matrix_bytes = shape.n**2 * shape.parts * self.asm.entry_bytes
        self.member = shape.n**2 * self.entry
        self.token = shape.members * self.member
        # Workspace: number and address of each lane's matrix; scores and values; the stream.
        self.pair = Memory(RBP, -(-16 * self.asm.lanes // self.register) * self.register)
        self.stream = self.pair + 2 * self.token
        if shape.complex:
            self.tile = (2, 4) if shape.wide else (2, 2)
        else:
            self.tile = (4, 4) if shape.wide else (2, 4)

    def parts(self) -> Iterator[None]:
        """A function that takes parts of a job; R12 is the first matrix of one."""
        asm = self.asm
        part, done = asm.name(), asm.name()
        asm.enter()
        asm.set(RBX, RDI)
        asm.constant(RBP, 1)
        asm.fetch_and_add(AT["threads"], RBP)
        asm.times(RBP, AT["workspace_step"])
        asm.plus(RBP, AT["workspace"])
        asm.label(part)
        asm.constant(RAX, 1)
        asm.fetch_and_add(AT["ticket"], RAX)
        asm.compare(RAX, AT["parts"])
        asm.jump(done, "at_least")
        asm.get(RCX, AT["begins"])
        asm.get(R12, Memory(RCX, 0, index=RAX))
        asm.get(R13, Memory(RCX, 8, index=RAX))
        yield
        asm.jump(part)
        asm.label(done)
        asm.leave_vectors()
        asm.leave()

    def groups(self) -> Iterator[None]:
        """A function that takes parts of a job and goes through the groups of each; R12 is the first matrix of one."""
        asm = self.asm
        for _ in self.parts():
            group, done = asm.name(), asm.name()
            asm.label(group)
            asm.compare(R12, R13)
            asm.jump(done, "at_least")
            self._indices()
            yield
            asm.plus_constant(R12, asm.lanes)
            asm.jump(group)
            asm.label(done)

    def lanes(self) -> Iterator[None]:
        """A loop over the lanes; R8 is the number of one."""
        asm, loop = self.asm, self.asm.name()
        asm.constant(R8, 0)
        asm.label(loop)
        yield
        asm.plus_constant(R8, 1)
        asm.compare_constant(R8, asm.lanes)
        asm.jump(loop, "less")

    # --- matrices in and out ------------------------------------------------------------------------------------------

    def _indices(self) -> None:
        """Which matrix each lane has: R12 + lane, at most the last one, and from there through ``rows``."""
        asm = self.asm
        direct = asm.name()
        asm.get(RCX, AT["last"])
        asm.get(RDX, AT["rows"])
        for _ in self.lanes():
            asm.set(RAX, R12)
            asm.plus(RAX, R8)
            asm.compare(RAX, RCX)
            asm.set_if("greater", RAX, RCX)
            asm.compare_constant(RDX, 0)
            asm.jump(direct, "equal")
            asm.get(RAX, Memory(RDX, 0, index=RAX))
            asm.label(direct)
            asm.put(Memory(RBP, 0, index=R8), RAX)

    def _pointers(self, batch: str) -> None:
        """Where the matrix of each lane begins."""
        asm = self.asm
        asm.get(RDX, AT[batch])
        asm.get(RCX, AT[batch + "_step"])
        for _ in self.lanes():
            asm.get(RAX, Memory(RBP, 0, index=R8))
            asm.times(RAX, RCX)
            asm.plus(RAX, RDX)
            asm.put(Memory(RBP, 8 * asm.lanes, index=R8), RAX)

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

    def load(self, batch: str, to: Memory, run: bool = False) -> None:
        """The matrices of the lanes times the factor that R14 points to, whose negative lies behind it.

        Args:
            run: the lanes have matrices from R12 on that lie one behind another.  Which one has which is left open.
        """
        asm, n, parts, lanes = self.asm, self.shape.n, self.shape.parts, self.asm.lanes
        transposed, conjugate = (
            batch == "matrices" and x for x in (self.shape.transposed, self.shape.conjugate)
        )
        self._find(batch, run)
        asm.address(RDX, to)
        rows, spare = list(range(lanes)), list(range(lanes, lanes + 4))
        for length in self._pieces():
            taken = rows[:length] if run and self.packed else rows
            if length < len(taken):
                asm.choose(length, spare[3])
            for lane, register in enumerate(taken):
                at = self._place(lane, run)
                if length < len(taken):
                    asm.load_some(register, at, spare[3])
                else:
                    asm.load(register, at)
            found = transpose(asm, taken, spare[:3], length)
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

    def store(self, batch: str = "out", source: int = R10, run: bool = False) -> None:
        """The matrices of the lanes, from where a register points; ``run`` as for :meth:`load`."""
        asm, lanes = self.asm, self.asm.lanes
        self._find(batch, run)
        asm.set(RDX, source)
        rows, spare = list(range(lanes)), list(range(lanes, lanes + 4))
        for length in self._pieces():
            taken = rows[:length] if run and self.packed else rows
            for e in range(length):
                asm.load(taken[e], Memory(RDX, e * self.register))
            found = transpose(asm, taken, spare[:3], len(taken))
            mask = next(register for register in (*rows, *spare) if register not in found)
            if length < len(found):
                asm.choose(length, mask)
            for lane, register in enumerate(found):
                at = self._place(lane, run)
                if length < len(found):
                    asm.store_some(at, register, mask)
                else:
                    asm.store(at, register)

    @property
    def packed(self) -> bool:
        """Whether several matrices that lie one behind another fill a register."""
        reals = self.shape.n**2 * self.shape.parts
        return reals < self.asm.lanes and self.asm.lanes % reals == 0

    def _find(self, batch: str, run: bool) -> None:
        """Prepare for :meth:`_place`: the address of each lane's matrix, or in RSI that of the first of a run."""
        if not run:
            self._pointers(batch)
            return
        asm = self.asm
        asm.constant(RSI, self.matrix_bytes)
        asm.times(RSI, R12)
        asm.plus(RSI, AT[batch])

    def _place(self, lane: int, run: bool) -> Memory:
        """Where a lane's matrix is, from the entries on that RCX counts; of a packed run, a register's worth of it."""
        if run:
            return Memory(RSI, lane * (self.register if self.packed else self.matrix_bytes), index=RCX)
        self.asm.get(RAX, Memory(RBP, 8 * (self.asm.lanes + lane)))
        return Memory(RAX, 0, index=RCX)

    def over(self, length: int, most: int) -> Iterator[int]:
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

    def numbers(self, at: Memory) -> Iterator[tuple[Memory, Memory]]:
        """A loop over the lanes: where one has its number, and where its matrix has it, from RDX on."""
        asm = self.asm
        asm.address(RDI, at)
        for _ in self.lanes():
            asm.get(RAX, Memory(RBP, 0, index=R8))  # which matrix
            asm.constant(RCX, asm.entry_bytes)
            asm.times(RAX, RCX)
            asm.plus(RAX, RDX)
            yield Memory(RDI), Memory(RAX)
            asm.plus_constant(RDI, asm.entry_bytes)

    def gather_scales(self, to: Memory) -> None:
        """To ← the factors of the matrices of the lanes, and their negatives behind; R14 says so to :meth:`load`."""
        asm = self.asm
        asm.get(RDX, AT["scales"])
        for own, of_matrix in self.numbers(to):
            asm.get(RCX, of_matrix, asm.entry_bytes)
            asm.put(own, RCX, asm.entry_bytes)
        asm.load(0, to)
        asm.load(1, self.all_lanes(-1.0))
        asm.multiply(0, 0, 1)
        asm.store(to + self.register, 0)
        asm.address(R14, to)

    def identity(self, to: Memory, length: int) -> None:
        """To ← I in every lane, with zeros behind it up to ``length`` bytes."""
        asm = self.asm
        asm.zero(0)
        asm.address(RDI, to)
        asm.address(RSI, to)
        for block in self.over(length // self.register, 8):
            for b in range(block):
                asm.store(Memory(RDI, b * self.register), 0)
        asm.load(0, self.all_lanes(1.0))
        for i in range(self.shape.n):
            asm.store(to + i * (self.shape.n + 1) * self.entry, 0)

    def all_lanes(self, x: float) -> Constant:
        """A number in every lane."""
        return self.asm.data(struct.pack("d" if self.shape.double else "f", x) * self.asm.lanes)

    # --- products -----------------------------------------------------------------------------------------------------

    def product(self, X: int | Memory, Y: int | Memory, Z: int | Memory) -> None:
        """Z ← X Y, of pairs (X₀Y₀, X₁Y₀ + X₀Y₁)."""
        calls = [(0, 0, 0, self.multiply)]
        if self.shape.members == 2:
            calls += [(1, 0, 1, self.multiply), (0, 1, 1, self.multiply_add)]
        for x, y, z, subroutine in calls:
            X_at, Y_at, Z_at = (
                (at if isinstance(at, Memory) else Memory(at)) + member * self.member
                for at, member in ((X, x), (Y, y), (Z, z))
            )
            self.times(X_at, Y_at, Z_at, subroutine)

    def times(self, X: int | Memory, Y: int | Memory, Z: int | Memory, subroutine: str | None = None) -> None:
        """Z ← X Y, or what another subroutine makes of two matrices."""
        for register, at in ((RSI, X), (RDX, Y), (RDI, Z)):
            self.asm.address(register, at if isinstance(at, Memory) else Memory(at))
        self.asm.call(subroutine or self.multiply)

    def multiplication(self, name: str, accumulate: bool) -> None:
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
