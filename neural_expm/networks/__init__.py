"""The networks, by family.  Each rebuilds itself from a configuration: ``Class.from_config(config)``."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from ..errors import CheckpointError

# family, or family/function, → "module:Class"; imported when a checkpoint of that kind is loaded
FAMILIES: dict[str, str] = {
    "equivariant/expm": "exponential:EquivariantExponential",
    "equivariant/sign": "sign_and_root:EquivariantSign",
    "equivariant/sqrtm": "sign_and_root:EquivariantSquareRoot",
    "transformer": "transformer:TransformerNet",
    "mlp": "mlp:MLPNet",
    "relu": "relu:ReLUNet",
}


def network_class(family: str, function: str) -> type[nn.Module]:
    """The class that computes ``function`` in ``family``.

    Raises:
        CheckpointError: this version has no such family.
    """
    target = FAMILIES.get(f"{family}/{function}", FAMILIES.get(family))
    if target is None:
        raise CheckpointError(
            f"no network family {family!r} for {function!r} in this version; known are {sorted(FAMILIES)}. "
            "A newer neural_expm may know it"
        )
    module, name = target.split(":")
    return getattr(import_module(f".{module}", __name__), name)
