"""Triton kernels in the interpreter, on the CPU, against torch in double; and compiled for a GPU that is not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported and a kernel decorated
pytest.importorskip("triton")

import neural_expm
from neural_expm.kernels import triton_exponential as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative Frobenius error in roundings, over a batch with norms up to 10 (two or three squarings).
ROUNDINGS = 60


def table(dtype: torch.dtype) -> kernels.Table:
    network = neural_expm.load("expm-equivariant", dtype.to_real())
    return kernels.Table.of(network, dtype.to_real(), torch.device(DEVICE))


def batch(count: int, n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    A, E = torch.randn(2, count, n, n, dtype=dtype, generator=generator) / n
    sizes = torch.logspace(-2, 1, count, dtype=dtype.to_real())
    return (A * sizes[:, None, None]).to(DEVICE), E.to(DEVICE)


def double(A: torch.Tensor) -> torch.Tensor:
    return A.to(torch.complex128 if A.is_complex() else torch.float64).resolve_conj()


def roundings(X: torch.Tensor, Y: torch.Tensor) -> float:
    return float((double(X) - Y).norm() / Y.norm()) / torch.finfo(X.dtype).eps


@pytest.mark.parametrize(
    ("n", "count", "dtype"),
    [
        (1, 1, torch.float32),
        (2, 70, torch.float64),
        (3, 5, torch.complex64),
        (5, 9, torch.float32),
        (17, 2, torch.complex128),
    ],
)
def test_values_and_derivatives(n, count, dtype):
    A, E = batch(count, n, dtype)
    value, derivative = torch.full_like(A, torch.nan), torch.full_like(A, torch.nan)
    tier, squarings, outside = kernels.exponential(A, table(dtype), value)
    # The adjoint's derivative, as the backward pass asks for it: transposed strides, lazily conjugated.
    kernels.exponential_frechet(A.mH, E, table(dtype), derivative)
    wide = double(A).requires_grad_()
    expected = torch.linalg.matrix_exp(wide)
    (gradient,) = torch.autograd.grad(expected, wide, double(E))
    assert roundings(value, expected.detach()) < ROUNDINGS
    assert roundings(derivative, gradient) < ROUNDINGS
    assert not bool(outside.any())
    assert int(squarings.max()) > 0 or count == 1
    assert bool((tier < len(table(dtype).products)).all())


def test_rows_outside_are_marked_and_no_other_is_touched():
    A, _ = batch(6, 3, torch.float32)
    A[1, 0, 0], A[4, 2, 1] = torch.nan, 1e6
    value = torch.full_like(A, torch.nan)
    _, _, outside = kernels.exponential(A, table(torch.float32), value)
    assert outside.tolist() == [False, True, False, False, True, False]
    inside = ~outside
    assert roundings(value[inside], torch.linalg.matrix_exp(double(A[inside]))) < ROUNDINGS


def test_an_empty_batch_and_a_matrix_too_large():
    kernels.exponential(torch.empty(0, 3, 3), table(torch.float32), torch.empty(0, 3, 3))
    with pytest.raises(ValueError, match="n = 33"):
        kernels.exponential(torch.empty(1, 33, 33), table(torch.float32), torch.empty(1, 33, 33))


# Registers, bytes of spill and of shared memory that a program may use on compute capability 9.0.
LIMITS = {"REG": 255, "LOCAL": 0, "STACK": 0, "SHARED": 48 * 1024}

COMPILE = """
import sys, torch, triton, neural_expm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from neural_expm.kernels import triton_exponential as kernels
network = neural_expm.load("expm-equivariant", torch.float32)
table = kernels.Table.of(network, torch.float32, torch.device("cpu"))
constants = kernels.options(table, 3, False, True)
types = dict.fromkeys(("a_matrix", "a_row", "a_column", "e_matrix", "e_row", "e_column", "count"), "i64")
types |= dict.fromkeys(("A", "E", "out", "radii", "tier_radii", "weights"), "*fp32")
types |= {"rung_tiers": "*i32", "n": "i32"}
types |= dict.fromkeys(("tier_out", "squarings_out", "outside_out"), "*fp32") | dict.fromkeys(constants, "constexpr")
source = ASTSource(kernels._kernel, types, constants)
made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
open(sys.argv[1], "wb").write(made.asm["cubin"])
"""


@pytest.mark.slow
def test_compiled_for_a_gpu_the_kernel_stays_in_registers(tmp_path):
    triton = pytest.importorskip("triton")
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not cuobjdump.exists():
        pytest.skip("triton without cuobjdump")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": tempfile.mkdtemp(dir=tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    cubin = tmp_path / "kernel.cubin"
    subprocess.run([sys.executable, "-c", COMPILE, str(cubin)], env=environment, check=True)
    said = subprocess.run(
        [cuobjdump, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    used = {key: int(re.search(rf"\b{key}:(\d+)", said).group(1)) for key in LIMITS}
    assert all(used[key] <= limit for key, limit in LIMITS.items()), used
