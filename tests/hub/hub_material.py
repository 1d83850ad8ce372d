"""A tiny checkpoint to publish, fetch and damage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from neural_expm.checkpoints import fingerprint, serialize
from neural_expm.domain import Domain
from neural_expm.hub.folder import write_folder
from neural_expm.manifest import Checkpoint
from neural_expm.networks.equivariant import EquivariantTransformer
from neural_expm.networks.pretrained import Pretrained

REPO = "tester/tiny-expm"


class TinyNet(Pretrained, EquivariantTransformer):
    """The smallest of our networks: a polynomial of degree 4 in two products."""


def tiny_network(seed: int = 0) -> TinyNet:
    generator = torch.Generator().manual_seed(seed)
    network = TinyNet(products=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return network.eval()


def tiny_checkpoint(seed: int = 0, **changes: object) -> tuple[Checkpoint, bytes]:
    """A record and the bytes that it speaks of."""
    content = serialize(tiny_network(seed), name="tiny", function="expm", family="equivariant")
    record = Checkpoint(
        name="tiny",
        function="expm",
        family="equivariant",
        dtype="float64",
        domain=Domain(n=(1, 8), radius=0.5),
        bound=0.25,
        bound_kind="statistical",
        file="model.safetensors",
        **fingerprint(content),
        trained_by="python -m tests.hub_material",
        measured={"median": 0.01, "p95": 0.03, "samples": 1000, "distribution": "ginibre", "seed": 0},
        card="A polynomial of degree 4.",
    )
    return replace(record, **changes), content  # type: ignore[arg-type]


def tiny_files(folder: Path, seed: int = 0, **changes: object) -> dict[str, bytes]:
    """The files of a published repository."""
    record, content = tiny_checkpoint(seed, **changes)
    write_folder(record, content, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}
