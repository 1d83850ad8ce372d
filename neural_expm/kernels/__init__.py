"""The arithmetic: ``reference`` defines what is right, the others are faster.

``eager`` runs anywhere that torch does; ``assembled`` is machine code for small matrices on x86-64, made without a
compiler; ``compiled`` is C++ for matrices on any CPU; ``native.py`` says which of these two.  A kernel that cannot be
had is never an error: the next simpler one answers, ``eager`` in the end.  The ``triton`` kernels are for CUDA devices.
They agree with the reference in Triton's interpreter and compile for a GPU, but have not been run on one yet, so they
answer only under NEURAL_EXPM_TRITON=1 and after a check (``triton/route.py``).  Before any of them ``multiples.py``
asks whether the matrices of a large batch are multiples of one; ``one_parameter.py`` answers in its ``eigenbasis.py``.
"""

from __future__ import annotations


def available() -> dict[str, str]:
    """What each kernel can do here, in words: ``"eager"``, ``"assembled"``, ``"compiled"``, ``"triton"``."""
    from . import compiled
    from .compiled import toolchain

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
        "assembled": _assembled(),
        "compiled": "; ".join([compiler, *made]),
        "triton": _triton(),
    }


def _assembled() -> str:
    from . import assembled

    try:
        registers = "AVX-512" if assembled.wide() else "AVX2"
    except assembled.Unavailable as error:
        return str(error)
    made = [
        f"{kind} n = {n} {str(dtype)[6:]} {state}"
        for (kind, n, dtype), state in sorted(assembled.state().items(), key=str)
    ]
    return "; ".join([registers, *([assembled.failure()] if assembled.failure() else []), *made])


def _triton() -> str:
    from importlib.util import find_spec

    import torch

    from .triton import route as triton_route

    if find_spec("triton") is None:
        return "not installed; pip install neural-expm[triton]"
    if not any(torch.cuda.is_available() or device == "cpu" for device in triton_route.DEVICES):
        return "no CUDA device"
    if not triton_route.wanted():
        return "off, because it has not been run on a GPU yet; NEURAL_EXPM_TRITON=1 asks for it"
    made = [
        f"{function} n = {n} {str(dtype)[6:]} on {device} {state}"
        for (function, n, dtype, device), state in sorted(triton_route.state().items(), key=str)
    ]
    return "; ".join(["asked for", *made])
