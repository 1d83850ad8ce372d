"""The assembler against another one."""

from __future__ import annotations

import pytest

from neural_expm.kernels.assembled.vectors import Assembler
from neural_expm.kernels.assembled.x86 import R9, R12, RAX, RBP, RCX, RDI, RSI, Memory

# As GNU as encodes them: instruction, AVX-512 (64-byte registers), AVX2; the shortest forms are not asked for.
ENCODINGS = [
    (
        "vmovups 19/3, [r12+128]",
        lambda a, v: a.load(v, Memory(R12, 128)),
        "62c17c48105c2402",
        "c4c17c109c2480000000",
    ),
    (
        "vfmadd231pd 2, 1, [rbp+64]",
        lambda a, v: a.multiply_add(2, 1, Memory(RBP, 64)),
        "62f2f548b85501",
        "c4e2f5b85540",
    ),
    ("vmulpd 4, v, 5", lambda a, v: a.multiply(4, v, 5), "62f1e540 59e5".replace(" ", ""), "c4e1e559e5"),
    (
        "vmovups [rdi+8*rcx], v",
        lambda a, v: a.store(Memory(RDI, 0, index=RCX), v),
        "62e17c48115ccf00",
        "c4e17c115ccf00",
    ),
    ("mov rax, [r9+8*rax]", lambda a, v: a.get(RAX, Memory(R9, 0, index=RAX)), "498b44c100", "498b44c100"),
    (
        "lock xadd [rbp+8], rax",
        lambda a, v: a.fetch_and_add(Memory(RBP, 8), RAX),
        "f0480fc14508",
        "f0480fc14508",
    ),
    ("vminpd 4, v, 5", lambda a, v: a.smaller(4, v, 5), "62f1e5405de5", "c4e1e55de5"),
    ("vmaxpd 4, v, 5", lambda a, v: a.larger(4, v, 5), "62f1e5405fe5", "c4e1e55fe5"),
    ("vsubpd 4, v, 5", lambda a, v: a.subtract(4, v, 5), "62f1e5405ce5", "c4e1e55ce5"),
    (
        "vdivpd 4, v, [rbp+64]",
        lambda a, v: a.divide(4, v, Memory(RBP, 64)),
        "62f1e5405e6501",
        "c4e1e55e6540",
    ),
    (
        "vcmpnle_uqpd k1/6, v, [rsi+128]; vpaddq 4{k1}, 4, 5 or vpsubq 4, 4, 6",
        lambda a, v: a.count_above(4, v, Memory(RSI, 128), 5, 6),
        "62f1e540c24e021662f1dd49d4e5",
        "c4e1e5c2b68000000016c4e15dfbe6",
    ),
    ("vcmpgt_oqpd k1/6, v, 5", lambda a, v: a.larger_than(6, v, 5), "62f1e540c2cd1e", "c4e1e5c2f51e"),
    (
        "vblendmpd 4{k1}, v, 5 or vblendvpd 4, v, 5, 6",
        lambda a, v: a.blend(4, v, 5, 6),
        "62f2e54165e5",
        "c4e3654be560",
    ),
    ("movzx rax, byte [rsi]", lambda a, v: a.get_byte(RAX, Memory(RSI)), "480fb64600", "480fb64600"),
    (
        "vcmpnle_uqpd k1/6, v, [rsi+128]; kmovw r9d, k1 or vmovmskpd r9d, 6",
        lambda a, v: a.which_above(R9, v, Memory(RSI, 128), 6),
        "62f1e540c24e0216c57893c9",
        "c4e1e5c2b68000000016c4617d50ce",
    ),
    ("mov byte [rcx], al", lambda a, v: a.put_byte(Memory(RCX), RAX), "48884100", "48884100"),
]


@pytest.mark.parametrize(("instruction", "emit", "evex", "vex"), ENCODINGS, ids=[row[0] for row in ENCODINGS])
def test_encodings(instruction, emit, evex, vex):
    for wide, expected in ((True, evex), (False, vex)):
        asm = Assembler(wide=wide, double=True)
        emit(asm, 19 if wide else 3)
        assert asm.code.hex() == expected
