"""The Fréchet derivative of a real polynomial as the imaginary part of a value: p(A + ihE) = p(A) + ih L(A, E) + O(h²).

Nothing cancels, so that h may be so small that h² is nothing beside a rounding.  One complex product takes the place of
the three real ones of a value–derivative pair; a batched GEMM of small matrices does it in the time of two.

Source: Al-Mohy & Higham (2010), "The complex step approximation to the Fréchet derivative of a matrix function",
Numer. Algorithms 53(1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chunks import equal_chunks, take
from .layout import BATCH_LAST_N, BatchFirst, change_layout, chunk_length
from .tape import BorrowedTape, Form, Recording, keeps_range

# h times the norm of E; its square is what the value, and so the derivative, is off by.
STEP = {torch.float32: 2.0**-20, torch.float64: 2.0**-40}
# Bytes of a batch from which on the way there and back is repaid.
FROM_BYTES = 1 << 18
# With directions of norms between its inverse and this, none so many times larger than another, neither they over the
# step nor the step over them, nor the squares of entries that count, leave the range.
TAME = 2.0**40
# Sizes for which a complex GEMM is the faster: from 24 on it computes for longer than three real ones.
SIZES = range(BATCH_LAST_N + 1, 24)


def suits(A: Tensor, total: int, squarings: int) -> bool:
    """Whether the derivative at so many of the matrices of A is faster so, and as exact."""
    if A.shape[-1] not in SIZES or total * A.shape[-1] ** 2 * A.element_size() < FROM_BYTES:
        return False
    return A.is_cpu and keeps_range(A.dtype, squarings)


def frechet(
    A: Tensor,
    E: Tensor,
    weights: list[Tensor],
    identity: float,
    squarings: int,
    out: Tensor,
    rows: Tensor | None,
) -> None:
    """out[rows] = L(A[rows], E[rows]); see ``eager.exponential``."""
    total, step = A.shape[0] if rows is None else rows.shape[0], STEP[A.dtype]
    # Two chunks at least: their tokens are most of the memory that is needed.
    count = -(-min(total, chunk_length(A, 2 * total)) // 2)
    form = Form(BatchFirst, count, A.shape[-1], A.shape[-1])
    recording = Recording(form, weights, identity, squarings, A.dtype.to_complex())
    sizes = torch.linalg.vector_norm(E.flatten(1), dim=1)
    smallest, largest = (float(size) for size in torch.aminmax(sizes))
    tame = smallest >= 1 / TAME and largest <= TAME * min(1.0, smallest)
    if not tame:  # each by its own size: beside a huge one a small one would be lost
        sizes = E.abs().flatten(1).amax(1).clamp_min_(torch.finfo(A.dtype).tiny)[:, None, None]
    with BorrowedTape(A, recording) as tape:
        value, direction = torch.view_as_real(tape.inputs[0]).unbind(-1)
        derivative = torch.view_as_real(tape.result)[..., 1]
        for at in equal_chunks(total, count, rows):
            change_layout(take(A, at), value, 2.0**-squarings)
            along = take(E, at)
            result = take(out, at) if isinstance(at, slice) else along
            if tame:
                torch.mul(along, 2.0**-squarings * step / largest, out=direction)
                tape.replay()
                torch.mul(derivative, largest / step, out=result)
            else:  # an entry cannot overflow, and neither can what follows where the derivative does not
                torch.div(along, take(sizes, at), out=direction).mul_(2.0**-squarings * step)
                tape.replay()
                torch.mul(derivative, 1 / step, out=result).mul_(take(sizes, at))
            if isinstance(at, Tensor):
                out.index_copy_(0, at, result)
