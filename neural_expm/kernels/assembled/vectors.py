"""The vector instructions that a kernel needs, with registers of AVX2 (VEX) or AVX-512 (EVEX).

Names and encodings: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, chapters 2 (VEX, EVEX) and
5 (instructions).  Operands come destination first, as there.
"""

from __future__ import annotations

from dataclasses import dataclass

from .x86 import RAX, Code, Memory


@dataclass(frozen=True)
class Constant:
    """A register's worth of bytes behind the code."""

    name: str


Vector = int  # number of a vector register
Source = Vector | Memory | Constant


@dataclass(frozen=True)
class _Operation:
    """A vector instruction: opcode, opcode map, mandatory prefix of single and of double precision."""

    opcode: int
    map: int
    prefix: tuple[int, int]


_MULTIPLY = _Operation(0x59, 1, (0, 1))
_ADD = _Operation(0x58, 1, (0, 1))
_ROOT = _Operation(0x51, 1, (0, 1))
_SUBTRACT, _DIVIDE = _Operation(0x5C, 1, (0, 1)), _Operation(0x5E, 1, (0, 1))
_BLEND_MASKED = _Operation(0x65, 2, (1, 1))
_BLEND_BY_SIGN = {False: _Operation(0x4A, 3, (1, 1)), True: _Operation(0x4B, 3, (1, 1))}
# Predicates of vcmp: greater or equal, and neither is NaN.
_GREATER, _EQUAL = 0x1E, 0x00
_SMALLER, _LARGER = _Operation(0x5D, 1, (0, 1)), _Operation(0x5F, 1, (0, 1))
_COMPARE = _Operation(0xC2, 1, (0, 1))
# Integers as wide as the entries: add under a mask for AVX-512, subtract for AVX2.
_ADD_INTEGERS = {False: _Operation(0xFE, 1, (1, 1)), True: _Operation(0xD4, 1, (1, 1))}
_SUBTRACT_INTEGERS = {False: _Operation(0xFA, 1, (1, 1)), True: _Operation(0xFB, 1, (1, 1))}
_NOT_AT_MOST = 0x16  # predicate of vcmp: greater, or NaN
_SIGNS = _Operation(0x50, 1, (0, 1))  # vmovmskps, vmovmskpd
_FMA, _FNMA = _Operation(0xB8, 2, (1, 1)), _Operation(0xBC, 2, (1, 1))
_PERMUTE_TWO = _Operation(0x7F, 2, (1, 1))
_LOAD, _STORE = _Operation(0x10, 1, (0, 0)), _Operation(0x11, 1, (0, 0))  # vmovups
# Of some entries: vmovups or vmovupd under a mask for AVX-512, vmaskmovps for AVX2.
_LOAD_SOME, _STORE_SOME = _Operation(0x10, 1, (0, 1)), _Operation(0x11, 1, (0, 1))
_LOAD_MASKED, _STORE_MASKED = _Operation(0x2C, 2, (1, 1)), _Operation(0x2E, 2, (1, 1))
_MASK = 1  # number of the mask register; 0 means none


class Assembler(Code):
    """Code with vectors of real numbers.

    Args:
        wide: AVX-512 registers of 64 bytes, 32 of them; else AVX2 ones of 32 bytes, 16 of them.
        double: entries of 8 bytes; else of 4.
    """

    def __init__(self, wide: bool, double: bool) -> None:
        super().__init__()
        self.wide, self.double = wide, double
        self._constants: dict[bytes, Constant] = {}

    @property
    def register_bytes(self) -> int:
        """Of a vector register."""
        return 64 if self.wide else 32

    @property
    def entry_bytes(self) -> int:
        """Of a real number."""
        return 8 if self.double else 4

    @property
    def lanes(self) -> int:
        """Numbers in a vector register."""
        return self.register_bytes // self.entry_bytes

    def finished(self) -> bytes:
        """The code with its constants behind it and its jumps resolved."""
        self.code += bytes(-len(self.code) % 64)
        for content, constant in self._constants.items():
            self.label(constant.name)
            self.code += content
        return super().finished()

    def load(self, to: Vector, source: Memory | Constant) -> None:
        """A register from memory, aligned or not: vmovups."""
        self._vector(_LOAD, to, 0, source, False)

    def store(self, to: Memory, source: Vector) -> None:
        """A register to memory, aligned or not: vmovups."""
        self._vector(_STORE, source, 0, to, False)

    def copy(self, to: Vector, source: Vector) -> None:
        """A register from another: vmovups."""
        self._vector(_LOAD, to, 0, source, False)

    def choose(self, entries: int, mask: Vector) -> None:
        """The first ``entries`` of a register are what :meth:`load_some` and :meth:`store_some` mean.

        Args:
            mask: a register that AVX2 needs to remember; RAX is lost with AVX-512.
        """
        if self.wide:
            self.constant(RAX, (1 << entries) - 1)
            self.code += bytes((0xC5, 0xF8, 0x92, 0xC0 | _MASK << 3))  # kmovw
        else:
            chosen = entries * self.entry_bytes
            self.load(mask, self.data(b"\xff" * chosen + bytes(self.register_bytes - chosen)))

    def load_some(self, to: Vector, source: Memory, mask: Vector) -> None:
        """The chosen entries from memory, zeros for the others; nothing else is read."""
        if self.wide:
            self._vector(_LOAD_SOME, to, 0, source, self.double, 0x80 | _MASK)
        else:
            self._vector(_LOAD_MASKED, to, mask, source, False)

    def store_some(self, to: Memory, source: Vector, mask: Vector) -> None:
        """The chosen entries to memory; nothing else is written."""
        if self.wide:
            self._vector(_STORE_SOME, source, 0, to, self.double, _MASK)
        else:
            self._vector(_STORE_MASKED, source, mask, to, False)

    def zero(self, to: Vector) -> None:
        """Zeros: vxorps, or vpxord, which is all that AVX-512F has."""
        operation = _Operation(0xEF, 1, (1, 1)) if self.wide else _Operation(0x57, 1, (0, 0))
        self._vector(operation, to, to, to, False)

    def multiply(self, to: Vector, a: Vector, b: Source) -> None:
        """To ← a · b: vmul."""
        self._vector(_MULTIPLY, to, a, b, self.double)

    def add(self, to: Vector, a: Vector, b: Source) -> None:
        """To ← a + b: vadd."""
        self._vector(_ADD, to, a, b, self.double)

    def root(self, to: Vector, a: Source) -> None:
        """To ← √a: vsqrt."""
        self._vector(_ROOT, to, 0, a, self.double)

    def subtract(self, to: Vector, a: Vector, b: Source) -> None:
        """To ← a − b: vsub."""
        self._vector(_SUBTRACT, to, a, b, self.double)

    def divide(self, to: Vector, a: Vector, b: Source) -> None:
        """To ← a / b: vdiv."""
        self._vector(_DIVIDE, to, a, b, self.double)

    def larger_than(self, mask: Vector, a: Vector, b: Vector) -> None:
        """Where a > b, for :meth:`blend`: vcmp.

        Args:
            mask: a register that AVX2 needs to remember.
        """
        self._vector(_COMPARE, _MASK if self.wide else mask, a, b, self.double)
        self.code.append(_GREATER)

    def equal(self, mask: Vector, a: Vector, b: Vector) -> None:
        """Where a = b, likewise."""
        self._vector(_COMPARE, _MASK if self.wide else mask, a, b, self.double)
        self.code.append(_EQUAL)

    def blend(self, to: Vector, a: Vector, b: Vector, mask: Vector) -> None:
        """To ← b where a mask of :meth:`larger_than` or :meth:`equal` says so, else a: vblendm, vblendv."""
        if self.wide:
            self._vector(_BLEND_MASKED, to, a, b, self.double, _MASK)
        else:
            self._vector(_BLEND_BY_SIGN[self.double], to, a, b, False)
            self.code.append(mask << 4)

    def smaller(self, to: Vector, a: Vector, b: Source) -> None:
        """To ← the lesser of a and b, or b where one of them is NaN: vmin."""
        self._vector(_SMALLER, to, a, b, self.double)

    def larger(self, to: Vector, a: Vector, b: Source) -> None:
        """To ← the greater of a and b, or b where one of them is NaN: vmax."""
        self._vector(_LARGER, to, a, b, self.double)

    def multiply_add(self, to: Vector, a: Vector, b: Source) -> None:
        """To ← to + a · b, rounded once: vfmadd231."""
        self._vector(_FMA, to, a, b, self.double)

    def multiply_subtract(self, to: Vector, a: Vector, b: Source) -> None:
        """To ← to − a · b, rounded once: vfnmadd231."""
        self._vector(_FNMA, to, a, b, self.double)

    def count_above(self, counts: Vector, x: Vector, limit: Memory, one: Vector, spare: Vector) -> None:
        """Counts ← counts + 1, integers as wide as the entries, where x > limit or one of them is NaN.

        Args:
            one: the integer 1 in every entry, for AVX-512.
            spare: a register whose content AVX2 needs to overwrite.
        """
        self._vector(_COMPARE, _MASK if self.wide else spare, x, limit, self.double)
        self.code.append(_NOT_AT_MOST)
        if self.wide:
            self._vector(_ADD_INTEGERS[self.double], counts, counts, one, self.double, _MASK)
        else:
            self._vector(_SUBTRACT_INTEGERS[self.double], counts, counts, spare, False)

    def which_above(self, to: int, x: Vector, limit: Memory, spare: Vector) -> None:
        """A general register with a bit for each entry, set where x > limit or one of them is NaN: vcmp, (k)movmsk.

        Args:
            spare: a register whose content AVX2 needs to overwrite.
        """
        self._vector(_COMPARE, _MASK if self.wide else spare, x, limit, self.double)
        self.code.append(_NOT_AT_MOST)
        if self.wide:
            self.code += bytes(
                (0xC5, 0x78 | (~to >> 3 & 1) << 7, 0x93, 0xC0 | (to & 7) << 3 | _MASK)
            )  # kmovw
        else:
            self._vector(_SIGNS, to, 0, spare, False)

    def permute_two(self, to: Vector, index: Vector, other: Vector) -> None:
        """To ← the entries of (to, other) that ``index`` names: vpermt2 (AVX-512)."""
        self._vector(_PERMUTE_TWO, to, index, other, self.double)

    def halves(self, to: Vector, a: Vector, b: Vector, upper: bool) -> None:
        """The lower or upper halves of a and of b: vperm2f128 (AVX2)."""
        self._vector(_Operation(0x06, 3, (1, 1)), to, a, b, False)
        self.code.append(0x31 if upper else 0x20)

    def unpack(self, to: Vector, a: Vector, b: Vector, upper: bool) -> None:
        """Every other 8 bytes of a, each with those of b behind: vunpcklpd, vunpckhpd (AVX2)."""
        self._vector(_Operation(0x15 if upper else 0x14, 1, (1, 1)), to, a, b, False)

    def duplicate(self, to: Vector, a: Vector, odd: bool) -> None:
        """Every other 4 bytes of a, twice each: vmovsldup, vmovshdup (AVX2)."""
        self._vector(_Operation(0x16 if odd else 0x12, 1, (2, 2)), to, 0, a, False)

    def blend_odd(self, to: Vector, a: Vector, b: Vector) -> None:
        """The even 4 bytes of a, the odd ones of b: vblendps (AVX2)."""
        self._vector(_Operation(0x0C, 3, (1, 1)), to, a, b, False)
        self.code.append(0xAA)

    def data(self, content: bytes) -> Constant:
        """A constant of a register's size."""
        return self._constants.setdefault(content, Constant(f"constant {len(self._constants)}"))

    def leave_vectors(self) -> None:
        """What code with SSE instructions wants to find: vzeroupper."""
        self.code += b"\xc5\xf8\x77"

    def _vector(
        self, operation: _Operation, reg: int, second: int, rm: Source, wide_entries: bool, masking: int = 0
    ) -> None:
        # Bit 3 of each register number goes into the prefix, bit 4 into that of AVX-512; all are stored inverted.
        if isinstance(rm, Memory):
            x, b = 0 if rm.index is None else rm.index >> 3, rm.base >> 3
        elif isinstance(rm, Constant):
            x, b = 0, 0
        else:
            x, b = rm >> 4, rm >> 3 & 1
        head = (~reg >> 3 & 1) << 7 | (~x & 1) << 6 | (~b & 1) << 5
        tail = wide_entries << 7 | (~second & 15) << 3 | operation.prefix[self.double]
        if self.wide:
            head |= (~reg >> 4 & 1) << 4 | operation.map
            self.code += bytes((0x62, head, tail | 4, 0x40 | (~second >> 4 & 1) << 3 | masking))
        else:
            self.code += bytes((0xC4, head | operation.map, tail | 4))
        self.code.append(operation.opcode)
        if isinstance(rm, Memory):
            self._address(reg, rm, self.register_bytes if self.wide else 1)
        elif isinstance(rm, Constant):
            self.code.append((reg & 7) << 3 | 5)  # relative to the end of the instruction
            self._target(rm.name)
        else:
            self.code.append(0xC0 | (reg & 7) << 3 | rm & 7)
