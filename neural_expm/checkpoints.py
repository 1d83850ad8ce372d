"""Find a checkpoint, verify it, build its network.  A missing or damaged file raises; nothing runs on random weights.

A weight file is safetensors.  Its metadata key ``config`` holds JSON: ``format``, ``name``, ``function``, ``family``
and ``network`` (what the class needs to rebuild itself), so the file can stand alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from .errors import CheckpointError
from .manifest import Checkpoint
from .networks import network_class

FORMAT = 1
MAX_BYTES = 64 * 2**20  # no checkpoint of these families is near it; a larger file is not one of ours


def read_verified(path: Path, sha256: str | None = None, size: int | None = None, name: str = "?") -> bytes:
    """The bytes of a weight file, after its size and digest have been checked.

    Raises:
        CheckpointError: missing, unreadable, too large, or not the bytes that were promised.
    """
    again = "reinstall neural_expm, or name another checkpoint"
    try:
        found = path.stat().st_size
        if found > MAX_BYTES:
            raise CheckpointError(
                f"checkpoint {name!r}: {path} has {found} bytes, more than the {MAX_BYTES} allowed"
            )
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {name!r}: cannot read {path}: {error}; {again}") from error
    if size is not None and len(content) != size:
        raise CheckpointError(
            f"checkpoint {name!r}: {path} has {len(content)} bytes, expected {size}; {again}"
        )
    if sha256 is not None and (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise CheckpointError(f"checkpoint {name!r}: {path} has sha256 {digest}, expected {sha256}; {again}")
    return content


def parse(content: bytes, name: str = "?") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a safetensors file.

    Raises:
        CheckpointError: not safetensors, no configuration, or a configuration of another format.
    """
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        config = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["config"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {name!r} is not a safetensors file with a neural_expm configuration: {error!r}"
        ) from error
    missing = {"format", "name", "function", "family", "network"} - set(config)
    if missing or config["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint {name!r}: configuration lacks {sorted(missing)} or is of format "
            f"{config.get('format')!r} (this version reads {FORMAT})"
        )
    return config, tensors


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str = "?") -> nn.Module:
    """The network of a configuration with these weights: eval mode, weights frozen.

    Raises:
        CheckpointError: the configuration and the tensors disagree (names, shapes, NaN).
    """
    network = network_class(config["family"], config["function"]).from_config(dict(config["network"]))
    expected = network.state_dict()
    if set(expected) != set(tensors):
        raise CheckpointError(
            f"checkpoint {name!r}: configuration and tensors disagree: missing {sorted(set(expected) - set(tensors))}, "
            f"unexpected {sorted(set(tensors) - set(expected))}"
        )
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"checkpoint {name!r}: tensor {key!r} has shape {tuple(tensor.shape)}, "
                f"the configuration asks for {tuple(expected[key].shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"checkpoint {name!r}: tensor {key!r} has NaN or infinite entries")
    network.load_state_dict({key: tensor.to(expected[key].dtype) for key, tensor in tensors.items()})
    return network.eval().requires_grad_(False)


def load_record(record: Checkpoint) -> nn.Module:
    """The network of a manifest record, verified against it; read once per process.

    Raises:
        CheckpointError: see :func:`read_verified`, :func:`parse`, :func:`build`.
    """
    return _load(record.name, str(record.root / record.file), record.sha256, record.size)


@lru_cache(maxsize=32)
def _load(name: str, path: str, sha256: str, size: int) -> nn.Module:
    config, tensors = parse(read_verified(Path(path), sha256, size, name), name)
    return build(config, tensors, name)


def save(
    network: nn.Module, path: Path, *, name: str, function: str, family: str, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Write a weight file aside, then rename it into place: the earlier file stays whole if anything fails.

    Args:
        dtype: store floating tensors so (half precision where the error does not move); None keeps them.

    Returns:
        ``{"file", "sha256", "size"}`` for the manifest entry.
    """
    config = {
        "format": FORMAT,
        "name": name,
        "function": function,
        "family": family,
        "network": network.config,
    }
    tensors = {
        key: (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor)
        .detach()
        .cpu()
        .contiguous()
        for key, tensor in network.state_dict().items()
    }
    content = safetensors.torch.save(tensors, metadata={"config": json.dumps(config, sort_keys=True)})
    write_atomically(path, content)
    return {"file": path.name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path`` and rename: a full disk or a kill leaves the earlier file intact.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
            temporary = handle.name
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(
            temporary, 0o644
        )  # a temporary file is private; weights are read by every user of a site-packages
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise CheckpointError(f"cannot write {path}: {error}; free space or choose another folder") from error
