"""Machine code for x86-64, one instruction a call: general registers, memory, jumps and subroutines.

Names and encodings: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, chapters 2 (prefixes,
ModRM) and 3 to 6 (instructions).  Operands come destination first, as there.
"""

from __future__ import annotations

from dataclasses import dataclass

# General registers by their numbers in the manual.
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 = range(16)


@dataclass(frozen=True)
class Memory:
    """[base + 8·index + offset]."""

    base: int
    offset: int = 0
    index: int | None = None

    def __add__(self, bytes_: int) -> Memory:
        return Memory(self.base, self.offset + bytes_, self.index)


_CONDITIONS = {
    "equal": 0x4,
    "unequal": 0x5,
    "less": 0xC,
    "at_least": 0xD,
    "at_most": 0xE,
    "greater": 0xF,
}
_CALLEE_SAVED = (RBX, RBP, R12, R13, R14, R15)


class Code:
    """Instructions one after another.

    Attributes:
        code: the bytes so far.
    """

    def __init__(self) -> None:
        self.code = bytearray()
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []
        self._names = 0

    def finished(self) -> bytes:
        """The code with its jumps resolved."""
        for at, name in self._jumps:
            self.code[at : at + 4] = (self._labels[name] - at - 4).to_bytes(4, "little", signed=True)
        return bytes(self.code)

    # --- general registers --------------------------------------------------------------------------------------------

    def get(self, to: int, source: Memory, bytes_: int = 8) -> None:
        """A register from 4 or 8 bytes of memory: mov."""
        self._general((0x8B,), to, source, bytes_ == 8)

    def put(self, to: Memory, source: int, bytes_: int = 8) -> None:
        """4 or 8 bytes of a register to memory: mov."""
        self._general((0x89,), source, to, bytes_ == 8)

    def get_byte(self, to: int, source: Memory) -> None:
        """A register from a byte of memory: movzx."""
        self._general((0x0F, 0xB6), to, source)

    def put_byte(self, to: Memory, source: int) -> None:
        """The lowest byte of a register to memory: mov."""
        self._general((0x88,), source, to)

    def set(self, to: int, source: int) -> None:
        """A register from another: mov."""
        self._general((0x8B,), to, source)

    def constant(self, to: int, value: int) -> None:
        """A register from a constant below 2³¹: mov."""
        self._general((0xC7,), 0, to)
        self.code += value.to_bytes(4, "little", signed=True)

    def address(self, to: int, at: Memory) -> None:
        """The address itself: lea."""
        self._general((0x8D,), to, at)

    def plus(self, to: int, source: int | Memory) -> None:
        """To ← to + source: add."""
        self._general((0x03,), to, source)

    def minus(self, to: int, source: int | Memory) -> None:
        """To ← to − source: sub."""
        self._general((0x2B,), to, source)

    def plus_constant(self, to: int, value: int) -> None:
        """To ← to + value: add."""
        self._general((0x81,), 0, to)
        self.code += value.to_bytes(4, "little", signed=True)

    def times(self, to: int, source: int | Memory) -> None:
        """To ← to · source: imul."""
        self._general((0x0F, 0xAF), to, source)

    def compare(self, a: int, b: int | Memory) -> None:
        """Set the flags by a − b: cmp."""
        self._general((0x3B,), a, b)

    def compare_constant(self, a: int, value: int) -> None:
        """Set the flags by a − value: cmp."""
        self._general((0x81,), 7, a)
        self.code += value.to_bytes(4, "little", signed=True)

    def set_if(self, condition: str, to: int, source: int) -> None:
        """To ← source where the flags say so: cmov."""
        self._general((0x0F, 0x40 | _CONDITIONS[condition]), to, source)

    def exchange(self, a: int, b: int) -> None:
        """Each register from the other: xchg."""
        self._general((0x87,), a, b)

    def fetch_and_add(self, to: Memory, source: int) -> None:
        """Add to memory and learn what was there, no two threads the same: lock xadd."""
        self.code.append(0xF0)
        self._general((0x0F, 0xC1), source, to)

    def enter(self) -> None:
        """Where a function may be called, endbr64; push what it has to leave as it was (System V)."""
        self.code += b"\xf3\x0f\x1e\xfa"
        for register in _CALLEE_SAVED:
            self.code += bytes((0x41, 0x50 | register & 7)) if register > 7 else bytes((0x50 | register,))

    def leave(self) -> None:
        """Undo :meth:`enter` and return."""
        for register in reversed(_CALLEE_SAVED):
            self.code += bytes((0x41, 0x58 | register & 7)) if register > 7 else bytes((0x58 | register,))
        self.back()

    def back(self) -> None:
        """Return from a subroutine: ret."""
        self.code.append(0xC3)

    def _general(self, opcode: tuple[int, ...], reg: int, rm: int | Memory, wide: bool = True) -> None:
        if isinstance(rm, Memory):
            x, b = 0 if rm.index is None else rm.index >> 3, rm.base >> 3
        else:
            x, b = 0, rm >> 3
        self.code.append(0x40 | wide << 3 | (reg >> 3) << 2 | x << 1 | b)
        self.code += bytes(opcode)
        if isinstance(rm, Memory):
            self._address(reg, rm)
        else:
            self.code.append(0xC0 | (reg & 7) << 3 | rm & 7)

    def _address(self, reg: int, at: Memory, unit: int = 1) -> None:
        """ModRM, SIB and offset; AVX-512 counts a short offset in whole registers."""
        short = at.offset % unit == 0 and -128 <= at.offset // unit < 128
        mode = 0x40 if short else 0x80
        if at.index is None and at.base & 7 != RSP:
            self.code.append(mode | (reg & 7) << 3 | at.base & 7)
        else:
            times_index = (
                RSP << 3 if at.index is None else 3 << 6 | (at.index & 7) << 3
            )  # RSP stands for none
            self.code += bytes((mode | (reg & 7) << 3 | 4, times_index | at.base & 7))
        offset, size = (at.offset // unit, 1) if short else (at.offset, 4)
        self.code += offset.to_bytes(size, "little", signed=True)

    # --- control ------------------------------------------------------------------------------------------------------

    def name(self) -> str:
        """A label that no other is."""
        self._names += 1
        return f"label {self._names}"

    def label(self, name: str) -> str:
        """Here is ``name``."""
        self._labels[name] = len(self.code)
        return name

    def jump(self, name: str, condition: str = "") -> None:
        """Go on at ``name``, always or where the flags say so: jmp, jcc."""
        self.code += bytes((0x0F, 0x80 | _CONDITIONS[condition])) if condition else b"\xe9"
        self._target(name)

    def call(self, name: str) -> None:
        """Go to a subroutine: call."""
        self.code.append(0xE8)
        self._target(name)

    def _target(self, name: str) -> None:
        self._jumps.append((len(self.code), name))
        self.code += bytes(4)
