"""What the tests of the Triton kernels share.  Import it before anything that imports triton."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported and a kernel decorated
triton = pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter is numpy, which warns of the overflows that the certificates are there for.
QUIET = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def double(A: Tensor) -> Tensor:
    """A in double precision."""
    return A.to(torch.complex128 if A.is_complex() else torch.float64).resolve_conj()


def roundings(X: Tensor, Y: Tensor) -> float:
    """Relative Frobenius error of a batch, in roundings of the dtype of X."""
    return float((double(X) - Y).norm() / Y.norm()) / torch.finfo(X.dtype).eps


COMPILE = """
import sys, torch, triton, neural_expm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from neural_expm.kernels.triton import arithmetic as triton_arithmetic
from neural_expm.kernels.triton import composition as triton_composition
from neural_expm.kernels.triton import exponential as triton_exponential
function, n, name, dual = sys.argv[1:]
n, dtype, dual = int(n), getattr(torch, name), dual == "1"
real, cpu = dtype.to_real(), torch.device("cpu")
rules = neural_expm.load(f"{function}-equivariant", real).rules(real)
if function == "expm":
    module, table = triton_exponential, triton_exponential.table(rules, real, cpu)
else:
    module, table = triton_composition, triton_composition.table(rules, function == "sqrtm", real, cpu)
constants = module.options(table, torch.empty(1, n, n, dtype=dtype), dual)
constants |= {"CONJUGATE_A": False, "CONJUGATE_E": False}
types = {name: "*fp32" if real == torch.float32 else "*fp64" for name in module._kernel.arg_names}
types |= {f"{name}_{step}": "i64" for name in "ae" for step in ("matrix", "row", "column")}
types |= {"count": "i64", "n": "i32"} | dict.fromkeys(constants, "constexpr")
notes = {"rung_tiers": "*i32", "tier_out": "*i32", "squarings_out": "*i32", "level_out": "*u8", "passes_out": "*i32",
         "accepted_out": "*i1", "hermitian_out": "*i1"}
types |= {name: kind for name, kind in notes.items() if name in types}
warps = triton_arithmetic.BLOCKS[constants["SIZE"]][1]
source = ASTSource(module._kernel, types, constants)
made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
print("bytes shared:", made.metadata.shared)
"""


def usage(folder: Path, function: str, n: int, dtype: torch.dtype, dual: bool) -> dict[str, int]:
    """What a program needs on compute capability 9.0, compiled in a process of its own: no GPU is asked for.

    Returns:
        Of a thread ``registers``, and bytes of ``stack``, where spills go, too; bytes of ``shared`` memory.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["TRITON_DUMP_PTXAS_LOG"] = "1"  # what the assembler says of the program
    command = [sys.executable, "-c", COMPILE, function, str(n), str(dtype)[6:], str(int(dual))]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    patterns = {
        "registers": r"Used (\d+) registers",
        "stack": r"(\d+) bytes stack frame",
        "shared": r"bytes shared: (\d+)",
    }
    return {key: max(map(int, re.findall(pattern, said))) for key, pattern in patterns.items()}
