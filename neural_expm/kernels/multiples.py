"""Batches t₁Q, t₂Q, … of multiples of one matrix: the branch lengths of a tree, the times of a trajectory.

Such a batch is one point on a one-parameter group e^{tQ} after another, and what they share need be made only once
(``one_parameter.py``).  It is recognised by its entries, to their last digits: nobody has to say so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Between two ratios of entries: each has been rounded with its entry, that of Q, its reciprocal and their product.
ROUNDINGS = 8
CHUNK = 1 << 17  # entries that are looked at at once


class Multiples(NamedTuple):
    """The batch t₁Q, t₂Q, …

    Attributes:
        times: shape (batch,).
        generator: Q, shape (n, n).
        address: of the batch, whose memory Q is a part of.
    """

    times: Tensor
    generator: Tensor
    address: int


def glance(A: Tensor) -> Callable[[int], bool]:
    """Whether the first entries of the second and of the last matrix of a batch like A are in proportion.

    Args:
        A: real, contiguous, shape (batch, n, n), on the CPU, n ≥ 2.  The first matrix is not looked at: a grid of times
            begins with zero.

    Returns:
        A question to the address of such a batch.  Asked of each, it has to take no more than some microseconds.
    """
    of = ((ctypes.c_float if A.dtype == torch.float32 else ctypes.c_double) * 4).from_address
    second = A.shape[-1] ** 2 * A.element_size()
    last, slack = A.nbytes - second, ROUNDINGS * torch.finfo(A.dtype).eps

    def proportional(address: int) -> bool:
        a, b, c, d = of(address + second)
        w, x, y, z = of(address + last)
        return (
            abs(a * x - b * w) <= slack * abs(a * x)
            and abs(b * y - c * x) <= slack * abs(b * y)
            and abs(c * z - d * y) <= slack * abs(c * z)
        )

    return proportional


def multiples_of(A: Tensor, scratch: Tensor) -> Multiples | None:
    """The batch A as multiples of one of its matrices; None where it is not.

    Each matrix equals tQ entry by entry within a few roundings: to compute with tQ in its place changes the result by
    as much as the rounding of A itself has.  NaN and infinities, if there are any, are among the times.

    Args:
        A: real, contiguous, shape (batch, n, n), on the CPU, readable and without a history.
        scratch: like A, and overwritten: such as the memory of a result, which has to be fetched anyway.
    """
    count, n, _ = A.shape
    entries = A.view(count, n * n)
    one = entries[1]
    values = one.numpy()
    columns = None if values.all() else torch.from_numpy(np.flatnonzero(values))
    inverse = (one if columns is None else one[columns]).reciprocal()
    if not len(inverse):
        return None
    step, extremes = max(1, CHUNK // (n * n)), []
    scratch = scratch.view(-1)
    for piece in entries.split(step) if step < count else (entries,):
        ratios = scratch[: len(piece) * len(inverse)].view(len(piece), -1)
        if columns is None:
            torch.mul(piece, inverse, out=ratios)
        else:
            torch.index_select(piece, 1, columns, out=ratios)
            if int(torch.count_nonzero(piece)) != int(torch.count_nonzero(ratios)):
                return None
            ratios *= inverse
        extremes.append((torch.amin(ratios, 1), torch.amax(ratios, 1)))
        if len(extremes) == 1 and step < count and not _equal(*extremes[0]):
            return None  # as nearly all other batches do that have come so far
    low, high = extremes[0] if step >= count else (torch.cat(each) for each in zip(*extremes, strict=True))
    return Multiples(low.lerp_(high, 0.5), one.view(n, n), A.data_ptr()) if _equal(low, high) else None


def _equal(low: Tensor, high: Tensor) -> bool:
    """Whether they are, within ``ROUNDINGS``."""
    # Neighbouring floating-point numbers of one sign are neighbouring integers.
    kind = torch.int32 if low.dtype == torch.float32 else torch.int64
    least, most = torch.aminmax(high.view(kind) - low.view(kind))
    return int(least) >= -ROUNDINGS and int(most) <= ROUNDINGS
