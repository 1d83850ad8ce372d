"""W registers of W numbers transposed: from W matrices, one a register, to W entries, one a register, and back.

Fewer registers, K of them, are transposed in blocks of K numbers: from K matrices of K entries, several in a register.

log₂ K rounds, each of which exchanges numbers between registers i and i + D: of every 2D numbers the upper D of the one
go against the lower D of the other (Eklundh 1972, IEEE Trans. Comput. C-21(7)).
"""

from __future__ import annotations

from .vectors import Assembler, Vector


def transpose(asm: Assembler, rows: list[Vector], spare: list[Vector], needed: int) -> list[Vector]:
    """Emit the transpose of ``rows``, of which only the first ``needed`` registers of the result are asked for.

    Args:
        rows: a power of two of registers, at most as many as a register has numbers.
        spare: three registers whose content is lost (four for AVX2).

    Returns:
        Where the rows of the result are; the registers of ``rows`` and ``spare`` in another order.
    """
    distances = []
    distance = len(rows) // 2
    while distance:
        distances.append(distance)
        distance //= 2
    # Which registers each round must leave right, from the last one backwards.
    wanted = [set(range(needed))]
    for distance in reversed(distances):
        wanted.insert(0, wanted[0] | {i ^ distance for i in wanted[0]})
    rows, spare = list(rows), list(spare)
    for distance, after in zip(distances, wanted[1:], strict=True):
        exchange = _Wide(asm, distance, spare) if asm.wide else _Narrow(asm, distance, spare)
        for i in range(len(rows)):
            if not i & distance and (i in after or i + distance in after):
                exchange(rows, i, i + distance, after)
    return rows


class _Wide:
    """Exchange at one distance by permutations of two registers (AVX-512)."""

    def __init__(self, asm: Assembler, distance: int, spare: list[Vector]) -> None:
        self.asm, self.spare = asm, spare
        self.low, self.high = spare[1:3]
        lanes = range(asm.lanes)
        low = [lane - distance + asm.lanes if lane & distance else lane for lane in lanes]
        high = [lane + asm.lanes if lane & distance else lane + distance for lane in lanes]
        for register, indices in ((self.low, low), (self.high, high)):
            asm.load(register, asm.data(b"".join(i.to_bytes(asm.entry_bytes, "little") for i in indices)))

    def __call__(self, rows: list[Vector], i: int, j: int, after: set[int]) -> None:
        a, b, free = rows[i], rows[j], self.spare[0]
        if j in after:
            self.asm.copy(free, a)
            self.asm.permute_two(free, self.high, b)
        if i in after:
            self.asm.permute_two(a, self.low, b)
        if j in after:
            rows[j], self.spare[0] = free, b


class _Narrow:
    """Exchange at one distance by shuffles of AVX2."""

    def __init__(self, asm: Assembler, distance: int, spare: list[Vector]) -> None:
        self.asm, self.spare = asm, spare
        self.bytes = distance * asm.entry_bytes

    def __call__(self, rows: list[Vector], i: int, j: int, after: set[int]) -> None:
        asm, a, b = self.asm, rows[i], rows[j]
        low, high = self.spare[:2]
        if self.bytes == 16:
            asm.halves(low, a, b, upper=False)
            asm.halves(high, a, b, upper=True)
        elif self.bytes == 8:
            asm.unpack(low, a, b, upper=False)
            asm.unpack(high, a, b, upper=True)
        else:
            asm.duplicate(low, b, odd=False)
            asm.blend_odd(low, a, low)
            asm.duplicate(high, a, odd=True)
            asm.blend_odd(high, high, b)
        rows[i], rows[j] = low, high
        self.spare[:2] = a, b
