"""The arithmetic: ``reference`` defines what is right, the others are faster.

``eager`` runs anywhere that torch does; ``compiled`` is C++ for small matrices on a CPU.  A kernel that cannot be had
is never an error: ``eager`` answers.  ``triton_exponential`` is for CUDA devices; it agrees with the reference in
Triton's interpreter but has not met a GPU yet, so ``expm`` does not call it by itself.
"""

from __future__ import annotations


def available() -> dict[str, str]:
    """What each kernel can do here, in words: ``"eager"``, ``"compiled"``, ``"triton"``."""
    from . import compiled, toolchain

    made = [
        f"{kind} n = {n} {str(dtype)[6:]} {state}"
        for (kind, n, dtype), state in sorted(compiled.state().items(), key=str)
    ]
    try:
        compiler = " ".join(toolchain.compiler())
    except toolchain.ToolchainError as error:
        compiler = str(error)
    return {
        "eager": "always",
        "compiled": "; ".join([compiler, *made]),
        "triton": _triton(),
    }


def _triton() -> str:
    from importlib.util import find_spec

    import torch

    if find_spec("triton") is None:
        return "not installed; pip install neural-expm[triton]"
    return "on request, not by expm itself" if torch.cuda.is_available() else "no CUDA device"
