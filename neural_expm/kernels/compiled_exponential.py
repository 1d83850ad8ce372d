"""The compiled exponential (``batched.cpp``, ``rows.cpp``): rungs as C structures, and the calls."""

from __future__ import annotations

import ctypes
from functools import partial

import torch
from torch import Tensor

from . import eager
from .calling import Library, Source, checked

# From rows of so many bytes on a register holds a piece of a row instead of one entry of many matrices; up to LARGEST_N
# that is faster than batched GEMMs (benchmarks/scaling.py).
ROW_BYTES, LARGEST_N = 56, 128


class Network(ctypes.Structure):
    """Weights of a tier with a number of squarings."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("products", ctypes.c_int64),
        ("squarings", ctypes.c_int64),
        ("identity", ctypes.c_double),
    )


class _Ladder(ctypes.Structure):
    _fields_ = (
        ("radii", ctypes.c_void_p),
        ("majorants", ctypes.c_void_p),
        ("ratio", ctypes.c_double),
        ("rungs", ctypes.c_int64),
        ("least", ctypes.c_int64),
        ("networks", ctypes.POINTER(Network)),
    )


class Rungs:
    """The rungs of a ladder as the library reads them.

    Args:
        radii: of each rung, increasing, in the real dtype of the matrices.
        majorants: radii for ‖A²‖^{1/2}, likewise (``Ladder.majorant_radii``), for kernels that form A² first.
        ratio: largest ‖A‖/‖A²‖^{1/2} for them.
        networks: for each rung the flat weights (``EquivariantTransformer.flat``), the read-out of I, and s.
        derivative_level: derivatives of matrices at lesser rungs are computed at this one.
    """

    def __init__(
        self,
        radii: Tensor,
        majorants: Tensor,
        ratio: float,
        networks: list[tuple[Tensor, float, int]],
        derivative_level: int = 0,
    ) -> None:
        self._kept = radii, majorants, networks  # what the structure only points to
        structures = []
        for weights, identity, squarings in networks:
            # Heads 2 … m take 2h weights each and the read-out m + 1: m² + 2m − 1 in all.
            products = round((weights.shape[0] + 2) ** 0.5) - 1
            structures.append(Network(weights.data_ptr(), products, squarings, identity))
        array = (Network * len(structures))(*structures)
        self._structure = _Ladder(
            radii.data_ptr(), majorants.data_ptr(), ratio, len(structures), derivative_level, array
        )
        self.address = ctypes.addressof(self._structure)


class Kernel(Library):
    """exp and its Fréchet derivative for one n and dtype."""

    @staticmethod
    def file(n: int, dtype: torch.dtype) -> str:
        return "rows.cpp" if n * dtype.to_real().itemsize >= ROW_BYTES else "batched.cpp"

    @staticmethod
    def worthwhile(n: int, count: int) -> bool:
        return n <= LARGEST_N

    def __init__(self, library: ctypes.CDLL, n: int, dtype: torch.dtype) -> None:
        super().__init__(library, n, dtype)
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._value.argtypes = (pointer, integer, pointer, integer, pointer, pointer, integer)
        self._frechet.argtypes = (pointer, pointer, integer, pointer, pointer, pointer, integer)

    def value(self, A: Tensor, rungs: Rungs, trust: bool, out: Tensor | None) -> tuple[Tensor, bool]:
        """Out ← exp(A), each matrix by the first rung that reaches its norm (see the sources), or a deeper one.

        Args:
            A: shape (batch, n, n), any strides.
            trust: what no rung reaches gets the last one.
            out: contiguous (batch, n, n); None to ask for the rungs alone.

        Returns:
            The rung of each matrix, (batch) uint8, the number of rungs for those outside, which ``out`` leaves unset;
            and whether there are any.
        """
        count = A.shape[0]
        level = torch.empty(count, dtype=torch.uint8)
        status = self._value(
            ctypes.byref(self._source(A)),
            count,
            rungs.address,
            trust,
            level.data_ptr(),
            None if out is None else out.data_ptr(),
            self._threads(count, 8),
        )
        return level, checked(status)

    def value_at_once(self, A: Tensor, rungs: Rungs, level: Tensor | None = None) -> Tensor | None:
        """Exp of contiguous A, shape (batch, n, n); None where no rung serves one of the matrices.

        Args:
            level: becomes the rung of each matrix, (batch) uint8.
        """
        n, parts = self.n, self.parts
        row, out, count = n * parts, torch.empty_like(A), A.shape[0]
        status = self._value(
            ctypes.byref(Source(A.data_ptr(), n * row, row, parts, 0)),
            count,
            rungs.address,
            0,
            None if level is None else level.data_ptr(),
            out.data_ptr(),
            self._threads(count, 8),
        )
        return None if checked(status) else out

    def frechet(self, A: Tensor, E: Tensor, rungs: Rungs, level: Tensor, out: Tensor) -> None:
        """Out ← L(A, E) by the rungs in ``level`` or that for derivatives; out contiguous, rows outside left unset."""
        count = A.shape[0]
        status = self._frechet(
            ctypes.byref(self._source(A)),
            ctypes.byref(self._source(E)),
            count,
            rungs.address,
            level.data_ptr(),
            out.data_ptr(),
            self._threads(count, 24),
        )
        checked(status)

    def discrepancy(self) -> float:
        """Largest relative difference from the eager kernel, over a small batch with a fixed seed."""
        n, dtype, count = self.n, self.dtype, 19
        real = dtype.to_real()
        generator = torch.Generator().manual_seed(n)
        A, E = torch.randn(2, count, n, n, dtype=dtype, generator=generator) / n
        A[::3] *= 0.1
        networks = []
        for m in (2, 3):
            weights = [torch.rand(2, h, dtype=real, generator=generator) for h in range(2, m + 1)]
            networks.append([*weights, torch.rand(1, m + 1, dtype=real, generator=generator)])
        flat = [torch.cat([w.reshape(-1) for w in weights]) for weights in networks]
        radii = torch.tensor([0.3, 1e3], dtype=real)
        rungs = Rungs(radii, radii, 1.0, [(flat[0], 0.5, 0), (flat[1], -0.5, 2)])
        value, derivative, expected = torch.zeros_like(A), torch.zeros_like(A), torch.zeros_like(A)
        level, _ = self.value(A.mH, rungs, True, value)
        # One rung for all: matrices that share a register share the deepest of their rungs, which are not the same
        # function here, and which share a register depends on the number of threads.
        one = torch.ones_like(level)
        self.frechet(A.mH, E, rungs, one, derivative)
        adjoint = A.mH.resolve_conj().contiguous()
        worst = 0.0
        for got, compute, used in (
            (value, partial(eager.exponential, adjoint, None), level),
            (derivative, partial(eager.exponential, adjoint, E), one),
        ):
            for index, (weights, identity, squarings) in enumerate(
                ((networks[0], 0.5, 0), (networks[1], -0.5, 2))
            ):
                compute(weights, identity, squarings, expected, torch.nonzero(used == index)[:, 0])
            worst = max(worst, float((got - expected).abs().max() / expected.abs().max()))
        return worst
