"""The assembled inverse, for Newton's iteration: LAPACK takes small matrices one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from ...domain import frobenius_norm
from .inverse_code import Program
from .kernel import AssembledKernel, by_rows
from .lanes import Job


class InverseKernel(AssembledKernel):
    """A⁻¹ for one n and dtype."""

    largest_n = 16

    def value(self, A: Tensor) -> Tensor:
        """A⁻¹, shape (batch, n, n), by elimination with partial pivoting; not finite where a pivot is zero.

        Classical equivalent: ``torch.linalg.inv``.
        """
        count, n = A.shape[0], self.n
        transposed = A.stride()[1:] == (1, n)
        A = A if transposed else by_rows(A)
        program, function = self._program(Program, "code", 1, transposed, A.is_conj())
        scale = 1.0 / frobenius_norm(A)
        out = A.new_empty(A.shape)
        job = Job(
            out=out.data_ptr(), out_step=n * n * A.element_size(), last=count - 1, scales=scale.data_ptr()
        )
        self._call(function, job, A, count, 4 * n**3 * program.shape.parts**2, program.workspace())
        parts = torch.view_as_real(out) if A.is_complex() else out  # torch would make the scale complex, too
        parts.mul_(scale.view(-1, *[1] * (parts.ndim - 1)))
        return out

    def discrepancy(self) -> float:
        """Largest relative difference from LAPACK, over a small batch with a fixed seed."""
        generator = torch.Generator().manual_seed(self.n)
        A = torch.randn(19, self.n, self.n, dtype=self.dtype, generator=generator)
        A.diagonal(dim1=-2, dim2=-1).mul_(0.1)  # pivots away from the diagonal
        worst = 0.0
        for B in (A, A.mH):
            right = torch.linalg.inv(B)
            condition = torch.linalg.matrix_norm(B) * torch.linalg.matrix_norm(right)
            difference = torch.linalg.matrix_norm(self.value(B) - right) / torch.linalg.matrix_norm(right)
            worst = max(worst, float((difference / condition).max()))
        return worst
