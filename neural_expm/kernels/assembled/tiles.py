"""A batch by tiles, whose matrices are sorted by the rung that each needs, for the machine code of exp.

A part of the batch goes by tiles.  In a tile each matrix gets its level, the first rung whose radius reaches its norm;
the matrices are sorted by level, so that registers fill up with like ones, and those of a register are computed by the
deepest rung among them.
"""

from __future__ import annotations

from collections.abc import Iterator

from .job import AT, Shape
from .lanes import Lanes
from .x86 import R8, R9, R10, R11, R12, R13, R14, R15, RAX, RBP, RCX, RDI, RDX, RSI, Memory

NETWORK = 3  # numbers of eight bytes that a job has of each rung
MOST_RUNGS = 64
# Matrices of a tile: enough to fill registers with like ones, few enough to find them in the cache at the second look.
TILE, TILE_BYTES = 512, 1 << 18


class Tiles(Lanes):
    """The order in which matrices are computed, and the network of each register."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        lanes = self.asm.lanes
        self.tile_length = max(8 * lanes, min(TILE, TILE_BYTES // self.matrix_bytes // lanes * lanes))
        # Workspace, from behind the lanes' numbers and addresses: what was put aside, tables of the tile, the tokens.
        at = self.pair
        slots = [at + 8 * i for i in range(6)]
        self.tile_end, self.served, self.position, self.weights, self.products, self.squarings = slots
        self.begins = at + 64  # of each level among the sorted; eight bytes each
        self.levels = self.begins + 8 * (MOST_RUNGS + 2)
        self.order = self.levels + (self.tile_length + lanes) * self.asm.entry_bytes
        tables = self.order.offset + 8 * (self.tile_length + lanes)
        self.pair = Memory(RBP, -(-tables // self.register) * self.register)
        self.stream = self.pair + 2 * self.token

    def workspace(self, products: int) -> int:
        """Bytes that a thread needs."""
        return self.stream.offset + (products + 1) * self.token

    # --- a tile -------------------------------------------------------------------------------------------------------

    def _tiles(self) -> Iterator[None]:
        """The tiles of a part, R12 is the first matrix of one that is not computed yet."""
        asm = self.asm
        tile, done = asm.name(), asm.name()
        asm.label(tile)
        asm.compare(R12, R13)
        asm.jump(done, "at_least")
        asm.set(RAX, R12)
        asm.plus_constant(RAX, self.tile_length)
        asm.compare(RAX, R13)
        asm.set_if("greater", RAX, R13)
        asm.put(self.tile_end, RAX)
        self.tile_done = asm.name()
        yield
        asm.label(self.tile_done)
        asm.get(R12, self.tile_end)
        asm.jump(tile)
        asm.label(done)

    def _find_levels(self) -> None:
        """The level of each matrix, from its Frobenius norm; the number of rungs where none reaches it, or for NaN."""
        asm = self.asm
        group, rung, counted, done = (asm.name() for _ in range(4))
        asm.set(R15, R12)
        asm.address(R11, self.levels)
        asm.label(group)
        asm.compare(R15, self.tile_end)
        asm.jump(done, "at_least")
        asm.get(RCX, self.tile_end)
        asm.plus_constant(RCX, -1)
        for _ in self.lanes():  # idle ones repeat the last matrix
            asm.set(RAX, R15)
            asm.plus(RAX, R8)
            asm.compare(RAX, RCX)
            asm.set_if("greater", RAX, RCX)
            asm.put(Memory(RBP, 0, index=R8), RAX)
        asm.get(R14, AT["radii"])
        self.load("matrices", self.stream)
        self._norm()
        norm, counts, one, spare = range(4)
        asm.zero(counts)
        asm.load(one, asm.data((1).to_bytes(asm.entry_bytes, "little") * asm.lanes))
        asm.get(RSI, AT["radii"])
        asm.get(RCX, AT["reached"])
        asm.label(rung)
        asm.compare_constant(RCX, 0)
        asm.jump(counted, "equal")
        asm.count_above(counts, norm, Memory(RSI, 2 * self.register), one, spare)
        asm.plus_constant(RSI, self.register)
        asm.plus_constant(RCX, -1)
        asm.jump(rung)
        asm.label(counted)
        asm.store(Memory(R11), counts)
        asm.plus_constant(R11, self.register)
        asm.plus_constant(R15, asm.lanes)
        asm.jump(group)
        asm.label(done)

    def _norm(self) -> None:
        """Vector 0 ← ‖A‖_F of the first token."""
        asm, sums = self.asm, range(4)
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

    def _given_levels(self) -> None:
        """The level of each matrix from the bytes of the job, or the least one for derivatives."""
        asm, loop = self.asm, self.asm.name()
        asm.get(RSI, AT["levels"])
        asm.plus(RSI, R12)
        asm.address(RDI, self.levels)
        asm.get(RDX, AT["least"])
        asm.get(RCX, self.tile_end)
        asm.minus(RCX, R12)
        asm.label(loop)
        asm.get_byte(RAX, Memory(RSI))
        asm.compare(RAX, RDX)
        asm.set_if("less", RAX, RDX)
        asm.put(Memory(RDI), RAX, asm.entry_bytes)
        asm.plus_constant(RSI, 1)
        asm.plus_constant(RDI, asm.entry_bytes)
        asm.plus_constant(RCX, -1)
        asm.jump(loop, "unequal")

    def _sort(self) -> None:
        """The order ← the matrices by level; those that no rung serves come behind the served ones and are told of."""
        asm, entry_bytes = self.asm, self.asm.entry_bytes
        clear, count, add, place, all_served = (asm.name() for _ in range(5))
        asm.constant(RAX, 0)
        asm.get(RCX, AT["rungs"])
        asm.label(clear)  # one more than there are levels
        asm.put(Memory(RBP, self.begins.offset + 8, index=RCX), RAX)
        asm.plus_constant(RCX, -1)
        asm.compare_constant(RCX, -1)
        asm.jump(clear, "at_least")
        asm.address(RSI, self.levels)
        asm.get(RCX, self.tile_end)
        asm.minus(RCX, R12)
        asm.label(count)
        asm.get(RAX, Memory(RSI), entry_bytes)
        asm.get(RDX, Memory(RBP, self.begins.offset + 8, index=RAX))
        asm.plus_constant(RDX, 1)
        asm.put(Memory(RBP, self.begins.offset + 8, index=RAX), RDX)
        asm.plus_constant(RSI, entry_bytes)
        asm.plus_constant(RCX, -1)
        asm.jump(count, "unequal")
        asm.constant(RAX, 0)
        asm.constant(RDX, 0)
        asm.label(add)
        asm.plus(RDX, Memory(RBP, self.begins.offset, index=RAX))
        asm.put(Memory(RBP, self.begins.offset, index=RAX), RDX)
        asm.plus_constant(RAX, 1)
        asm.compare(RAX, AT["rungs"])
        asm.jump(add, "at_most")
        asm.put(self.served, RDX)
        asm.get(RCX, self.tile_end)
        asm.minus(RCX, R12)
        asm.compare(RDX, RCX)
        asm.jump(all_served, "equal")
        asm.constant(RAX, 1)
        asm.put(AT["outside"], RAX)
        asm.label(all_served)
        asm.address(RSI, self.levels)
        asm.set(RDX, R12)
        asm.label(place)
        asm.get(RAX, Memory(RSI), entry_bytes)
        asm.get(RCX, Memory(RBP, self.begins.offset, index=RAX))
        asm.put(Memory(RBP, self.order.offset, index=RCX), RDX)
        asm.plus_constant(RCX, 1)
        asm.put(Memory(RBP, self.begins.offset, index=RAX), RCX)
        asm.plus_constant(RSI, entry_bytes)
        asm.plus_constant(RDX, 1)
        asm.compare(RDX, self.tile_end)
        asm.jump(place, "less")
        if self.shape.members == 1:
            self._tell_outside()

    def _tell_outside(self) -> None:
        """The levels of those that no rung serves; the others are told when they are computed."""
        asm, loop, done = self.asm, self.asm.name(), self.asm.name()
        asm.get(R8, AT["levels"])
        asm.compare_constant(R8, 0)
        asm.jump(done, "equal")
        asm.get(RCX, self.served)
        asm.get(RAX, AT["rungs"])
        asm.label(loop)
        asm.get(RDX, self.tile_end)
        asm.minus(RDX, R12)
        asm.compare(RCX, RDX)
        asm.jump(done, "at_least")
        asm.get(RDX, Memory(RBP, self.order.offset, index=RCX))
        asm.plus(RDX, R8)
        asm.put_byte(Memory(RDX), RAX)
        asm.plus_constant(RCX, 1)
        asm.jump(loop)
        asm.label(done)

    # --- a register ---------------------------------------------------------------------------------------------------

    def _registers(self) -> Iterator[None]:
        """The registers of a tile: which matrices are in one, and the network for it; R14 points to its weights."""
        asm = self.asm
        register, done = asm.name(), asm.name()
        asm.constant(RAX, 0)
        asm.put(self.position, RAX)
        asm.label(register)
        asm.get(RDX, self.position)
        asm.get(RCX, self.served)
        asm.compare(RDX, RCX)
        asm.jump(done, "at_least")
        self._take_like_ones()
        for _ in self.lanes():  # idle ones repeat the first matrix
            asm.set(RAX, RDX)
            asm.plus(RAX, R8)
            asm.compare(RAX, R9)
            asm.set_if("at_least", RAX, RDX)
            asm.get(RAX, Memory(RBP, self.order.offset, index=RAX))
            asm.put(Memory(RBP, 0, index=R8), RAX)
        asm.put(self.position, R9)
        asm.set(RAX, R10)
        if self.shape.members == 1:
            self._tell_levels()
            asm.get(RCX, AT["out"])
            asm.compare_constant(RCX, 0)
            asm.jump(register, "equal")  # only the levels are wanted
        self._choose_network(RAX, R8)
        yield
        asm.jump(register)
        asm.label(done)

    def _take_like_ones(self) -> None:
        """R9 ← the end of the next ones of the order from RDX on, before RCX, that share a register.

        They are computed by the rung of the last one, R10, which is the deepest; each squaring too many costs half a
        digit, so that none gets more than one.
        """
        asm, fewer, taken = self.asm, self.asm.name(), self.asm.name()
        asm.set(R9, RDX)
        asm.plus_constant(R9, asm.lanes)
        asm.compare(R9, RCX)
        asm.set_if("greater", R9, RCX)
        self._level_of(R10, Memory(RBP, self.order.offset, index=RDX))
        self._address_network(R11, R10)
        asm.label(fewer)
        self._level_of(R10, Memory(RBP, self.order.offset - 8, index=R9))
        self._address_network(R8, R10)
        asm.get(RAX, Memory(R8, 16))
        asm.minus(RAX, Memory(R11, 16))
        asm.compare_constant(RAX, 1)
        asm.jump(taken, "at_most")
        asm.plus_constant(R9, -1)
        asm.jump(fewer)
        asm.label(taken)

    def _level_of(self, to: int, place: Memory) -> None:
        """The level of the matrix whose number is at a place; RAX, RSI and RDI are lost."""
        asm = self.asm
        asm.get(RAX, place)
        asm.minus(RAX, R12)
        asm.constant(RDI, asm.entry_bytes)
        asm.times(RAX, RDI)
        asm.address(RSI, self.levels)
        asm.plus(RSI, RAX)
        asm.get(to, Memory(RSI), asm.entry_bytes)

    def _address_network(self, to: int, level: int) -> None:
        """Where a job has the network of a level."""
        asm = self.asm
        asm.constant(to, 8 * NETWORK)
        asm.times(to, level)
        asm.plus(to, AT["networks"])

    def _choose_network(self, level: int, spare: int) -> None:
        """The network of a level is that of the register; R14 points to its weights.  RCX is lost."""
        asm = self.asm
        self._address_network(spare, level)
        for i, slot in enumerate((self.weights, self.products, self.squarings)):
            asm.get(RCX, Memory(spare, 8 * i))
            asm.put(slot, RCX)
        asm.get(R14, self.weights)

    def _tell_levels(self) -> None:
        """The matrices of the register have level RAX."""
        asm, done = self.asm, self.asm.name()
        asm.get(RDX, AT["levels"])
        asm.compare_constant(RDX, 0)
        asm.jump(done, "equal")
        for _ in self.lanes():
            asm.get(RCX, Memory(RBP, 0, index=R8))
            asm.plus(RCX, RDX)
            asm.put_byte(Memory(RCX), RAX)
        asm.label(done)
