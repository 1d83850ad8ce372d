"""Trust the numbers, not the file's word for it: a foreign "certified" bound is proven from the weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..checkpoints import load_record
from ..errors import CheckpointError
from ..manifest import Checkpoint

# family, or family/function, → the relative error on the record's domain that the weights prove
PROOFS: dict[str, Callable[[nn.Module, Checkpoint], float]] = {}
# A bound may be stated with the digits of the manifest; this much above it is still the same number.
STATED_DIGITS = 1e-6


def prove(record: Checkpoint) -> Checkpoint:
    """The record, once its network has been built and a bound that it calls certified has been proven anew.

    Raises:
        CheckpointError: the weights do not build the network, do not prove the stated bound, or belong to a
            family for which nothing can be proven.
    """
    network = load_record(record)
    if record.bound_kind != "certified":
        return record
    proof = PROOFS.get(f"{record.family}/{record.function}", PROOFS.get(record.family))
    if proof is None:
        raise CheckpointError(
            f"checkpoint {record.name!r} in {record.root} calls its bound certified, but there is no proof "
            f"for {record.family!r} networks of {record.function!r}; publish it as 'statistical' instead"
        )
    proven = proof(network, record)
    if not proven <= record.bound * (1 + STATED_DIGITS):
        raise CheckpointError(
            f"checkpoint {record.name!r} in {record.root} states a certified bound of {record.bound:.6g}, "
            f"its weights prove {proven:.6g} only; do not rely on it, and tell its author"
        )
    return record
