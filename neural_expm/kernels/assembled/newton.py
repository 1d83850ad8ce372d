"""The assembled sign by Newton's iteration: LAPACK inverts small matrices one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..newton import Evidence, sign
from .job import Job
from .kernel import AssembledKernel, by_rows
from .newton_code import Program

# Products of a matrix, to judge how many threads a batch is worth: an inverse takes as long as some six.
VALUE_PRODUCTS, FRECHET_PRODUCTS = 45, 135


class NewtonKernel(AssembledKernel):
    """The sign of any matrix for one n and dtype."""

    largest_n = 16

    def sign(self, A: Tensor, E: Tensor | None, steps: int, rows: Tensor, out: Tensor) -> Evidence:
        """Write the signs, or their derivatives in direction E, and return the evidence: see ``kernels/newton.py``.

        Args:
            A, E: shape (batch, n, n), any strides.
            steps: the most that are taken.
            rows: int64 indices of the matrices.
            out: contiguous (batch, n, n).
        """
        count, n = rows.shape[0], self.n
        notes = self._notes(len(Evidence._fields), count)
        job = Job(
            out=out.data_ptr(),
            out_step=n**2 * out.element_size(),
            rows=rows.data_ptr(),
            last=count - 1,
            stages=steps,
            notes=notes.data_ptr(),
            notes_step=notes.stride(0) * notes.element_size(),
        )
        if E is not None:
            E = by_rows(E.resolve_conj())
            job.directions, job.directions_step = E.data_ptr(), E.stride(0) * E.element_size()
        transposed = A.stride()[1:] == (1, n)
        A = A if transposed else by_rows(A)
        members, products = (1, VALUE_PRODUCTS) if E is None else (2, FRECHET_PRODUCTS)
        program, function = self._program(Program, "code", members, transposed, A.is_conj())
        self._call(function, job, A, count, products * n**3 * program.shape.parts**2, program.workspace())
        return Evidence(*notes[:, :count])

    def discrepancy(self) -> float:
        """Largest relative difference from the same by LAPACK, over a small batch with a fixed seed."""
        count, n, real = 19, self.n, self.dtype.to_real()
        generator = torch.Generator().manual_seed(n)
        noise, E = (torch.randn(count, n, n, dtype=self.dtype, generator=generator) for _ in range(2))
        # Eigenvalues ±√(sᵢsⱼ); every pivot lies away from the diagonal.
        A = torch.diag(torch.linspace(0.5, 2, n, dtype=real)).flip(0) + noise / (16 * n**0.5)
        rows, S, L = torch.arange(count), torch.empty_like(A), torch.empty_like(A)
        worst = 0.0
        for B in (A, A.mH):
            self.sign(B, E, 8, rows, L)
            evidence = self.sign(B, None, 8, rows, S)
            right, derivative, expected = sign(B, E, 8)
            assert derivative is not None
            for got, value in ((S, right), (L, derivative)):
                worst = max(worst, float((got - value).abs().max() / value.abs().max()))
            for name in ("size", "roundings", "matrix"):
                got, value = getattr(evidence, name), getattr(expected, name)
                worst = max(worst, float((got / value - 1).abs().max()))
            # Nothing but roundings, which are anyone's.
            small = evidence.residual + evidence.commutator / evidence.matrix
            worst = max(worst, float((small / evidence.size**2).max()))
        return worst
