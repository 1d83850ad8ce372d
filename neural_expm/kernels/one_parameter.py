"""e^{tQ} at many t, and its Fréchet derivative, in the eigenbasis of Q.

A function that commutes with similarity needs no products of matrices in an eigenbasis: f(tQ) = X f(tΛ) X⁻¹, and the
derivative is L(tQ, E) = X (F ∘ (X⁻¹EX)) X⁻¹ with the divided differences F of e^z at pairs of eigenvalues of tQ
(Daleckii & Krein 1965; Higham, *Functions of Matrices*, theorem 3.11).  X is the same for all t, so that the values of
a whole batch are one product of a (batch × n) by an (n × n²) matrix.

Values are computed as what is added to I, so that the rounding of X counts as little as tQ does; or to e^{tλ}I, λ the
largest eigenvalue, where that is much less than I.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .calling import CPU, readable
from .eigenbasis import Eigenbasis, eigenbasis
from .multiples import Multiples, multiples_of

MOST_GROWTH = 40.0  # |tλ|: divided differences reach its exponential squared, and single precision e^88
NO_DECAY = 0.5  # |tλ| of the largest eigenvalue up to which e^{tλ} counts as 1
CHUNK = 1 << 16  # entries of matrices that are computed at once
KRONECKER_N = 5  # up to which E ↦ X⁻¹EX is one product with a Kronecker product
FEWEST = 100  # matrices that are asked whether they are multiples of one
# What their products have to cost, in multiply-adds of double precision: beside torch operations, which spend some
# twenty more on each entry, and beside machine code, which is as fast for smaller matrices.
COST, NATIVE_COST, NATIVE_N = 1e6, 4e7, 32


def worthwhile(A: Tensor, native: bool) -> bool:
    """Whether batches like A are faster so, if they are of multiples of one matrix.

    Args:
        A: shape (batch, n, n).
        native: machine code would answer otherwise.
    """
    (count, n), digits = A.shape[:2], A.element_size() / 8
    if count < FEWEST or n < 2 or A.is_complex() or A.device != CPU:
        return False
    if not A.is_contiguous() or not readable(A):
        return False
    if native:
        return n >= NATIVE_N and count * n**3 * digits >= NATIVE_COST
    return count * n**2 * (n + 22) * digits >= COST


class OneParameter:
    """The batch t₁Q, t₂Q, … of a Q with a good eigenbasis.

    Args:
        multiples: the batch.
        basis: of its generator.
    """

    def __init__(self, multiples: Multiples, basis: Eigenbasis) -> None:
        values, self.left, self.right, norm = basis
        scale = max(abs(value) for value in values.tolist()) or 1.0  # so that no eigenvalue is above one
        self.address, self.values, self.times = multiples.address, values / scale, multiples.times * scale
        self.generator_norm = norm / scale
        self.earliest, latest = (float(t) for t in torch.aminmax(self.times))
        self.most_growth = max(-self.earliest, latest)  # the largest |tλ|

    @classmethod
    def find(cls, A: Tensor, scratch: Tensor) -> OneParameter | None:
        """The batch A, for which it is :func:`worthwhile`; None where it is no such batch, or e^{tQ} is huge.

        Args:
            A: shape (batch, n, n).
            scratch: contiguous, like A; overwritten.
        """
        multiples = multiples_of(A.detach(), scratch)
        basis = None if multiples is None else eigenbasis(multiples.generator.numpy())
        if multiples is None or basis is None:
            return None
        shared = cls(multiples, basis)
        return shared if shared.most_growth <= MOST_GROWTH else None

    def norms(self) -> np.ndarray:
        """‖tQ‖_F of each matrix."""
        return np.abs(self.times.numpy()) * self.generator_norm

    def norm(self) -> float:
        """The largest of them."""
        return self.most_growth * self.generator_norm

    def exponentials(self, out: Tensor) -> None:
        """Out ← e^{tQ}, contiguous (batch, n, n)."""
        count, n = out.shape[:2]
        top = max(self.values.tolist())
        if self.most_growth * abs(top) <= NO_DECAY:
            top = 0.0
        times = self.times.numpy()
        each = np.empty((n + 1, count), times.dtype)
        np.multiply(self.values[:, None] - top, times, out=each[:n], casting="same_kind")
        each[n] = 1.0
        weights = torch.from_numpy(each)
        weights[:n].expm1_()
        if top:
            weights *= (self.times * top).exp_()
        # The identity comes last: what is added to it has then been added up to all its digits.
        table = np.empty((n + 1, n, n))
        np.multiply(self.right.T[:, :, None], self.left[:, None], out=table[:n])
        table[n] = 0.0
        table[n].flat[:: n + 1] = 1.0
        torch.mm(weights.T, _like(out, table.reshape(n + 1, n * n)), out=out.view(count, n * n))

    def frechet(self, A: Tensor, E: Tensor, out: Tensor) -> bool:
        """Out ← L(A, E) for the batch itself or its transpose; False for any other A, and nothing done."""
        if A.data_ptr() != self.address or len(A) != len(self.times):
            return False
        left, right = (self.left, self.right) if A.stride(-1) == 1 else (self.right.T, self.left.T)
        # Neither a gap nor a time is quite zero, by so little that F is none the wiser.
        little, times = torch.finfo(E.dtype).eps ** 1.5, self.times
        gaps = self.values[:, None] - self.values
        gaps[np.abs(gaps) < little] = little
        if self.earliest < little:
            times = times.where(times.abs() >= little, little)
        e_over_t = (times * _like(E, self.values[:, None])).exp_().div_(times)  # e^{tλ}/t
        (count, n), E, pairs = A.shape[:2], E.contiguous(), _like(E, gaps.reshape(-1))
        step = min(max(1, CHUNK // (n * n)), count)
        change = (_Kronecker if n <= KRONECKER_N else _Products)(left, right, gaps, E.new_empty(step, n, n))
        scratch = E.new_empty(step, n * n)
        for start in range(0, count, step):
            at = slice(start, start + step)
            G, t = E[at], times[at, None]
            F = torch.mul(t, pairs, out=scratch[: len(t)]).expm1_()
            change.scale(F, e_over_t[:, at].T)
            M = change.into(G)
            M *= F
            change.back(M, out[at])
        return True


def _like(E: Tensor, X: np.ndarray) -> Tensor:
    return torch.from_numpy(X).to(E.dtype)


class _Products:
    """E ↦ X⁻¹EX, and back, by products from either side.

    Args:
        left, right: X⁻¹ and X.
        gaps: λ_k − λ_l.
        scratch: shape (batch, n, n) of the largest batch, and its dtype.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray, gaps: np.ndarray, scratch: Tensor) -> None:
        self.left, self.right, self.inverse = (
            _like(scratch, np.ascontiguousarray(X)) for X in (left, right, 1 / gaps)
        )
        self.scratch, self.result = scratch, torch.empty_like(scratch)

    def scale(self, F: Tensor, e: Tensor) -> None:
        """F_kl ← F_kl e_l / gap_kl, shape (batch, n²)."""
        each = F.view(len(F), *self.inverse.shape)
        each *= self.inverse
        each *= e[:, None]

    def into(self, E: Tensor) -> Tensor:
        """X⁻¹EX, shape (batch, n²)."""
        right, result = self.scratch[: len(E)], self.result[: len(E)]
        torch.mm(E.view(-1, E.shape[-1]), self.right, out=right.view(-1, E.shape[-1]))
        return torch.bmm(self.left.expand(E.shape), right, out=result).view(len(E), -1)

    def back(self, M: Tensor, out: Tensor) -> None:
        """Out ← XMX⁻¹."""
        left = self.scratch[: len(out)]
        torch.mm(M.view(-1, out.shape[-1]), self.left, out=left.view(-1, out.shape[-1]))
        torch.bmm(self.right.expand(out.shape), left, out=out)


class _Kronecker:
    """The same of small matrices: both sides in one product with the Kronecker product of X⁻¹ and X."""

    def __init__(self, left: np.ndarray, right: np.ndarray, gaps: np.ndarray, scratch: Tensor) -> None:
        n, self.scratch = len(gaps), scratch.view(len(scratch), -1)
        self.forth = _like(scratch, (left.T[:, None, :, None] * right[:, None]).reshape(n * n, n * n))
        self.home = _like(scratch, (right.T[:, None, :, None] * left[:, None]).reshape(n * n, n * n))
        self.each = _like(scratch, (np.eye(n)[:, None] / gaps).reshape(n, n * n))

    def scale(self, F: Tensor, e: Tensor) -> None:
        """As in :class:`_Products`."""
        F *= torch.mm(e, self.each, out=self.scratch[: len(F)])

    def into(self, E: Tensor) -> Tensor:
        """As in :class:`_Products`."""
        return torch.mm(E.view(len(E), -1), self.forth, out=self.scratch[: len(E)])

    def back(self, M: Tensor, out: Tensor) -> None:
        """As in :class:`_Products`."""
        torch.mm(M, self.home, out=out.view(len(out), -1))
