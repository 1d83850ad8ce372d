"""A checkpoint as a folder, the same on disk and on the Hub.

model.safetensors   the weights, with the network's configuration inside
config.json         the manifest entry: function, domain, promise, and the digest and size of the weights
README.md           the model card
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ..checkpoints import locate, write_atomically
from ..errors import CheckpointError, ManifestError
from ..manifest import FORMAT, Checkpoint
from ..safetensors_header import strict_json
from .card import model_card

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MAX_CONFIG_BYTES = 2**18


def read_folder(folder: Path) -> Checkpoint:
    """The record of a checkpoint folder; its weights are not read.

    Raises:
        CheckpointError: there is no ``config.json``, or it is not a manifest entry of this format.
    """
    path = locate(folder, CONFIG, str(folder))
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(
                f"{path} is larger than the {MAX_CONFIG_BYTES} bytes allowed: not one of ours"
            )
        entry = strict_json(path.read_bytes())
        if not isinstance(entry, dict) or entry.pop("format", None) != FORMAT:
            raise ValueError(
                f"expected an object with 'format': {FORMAT}; a newer neural_expm may read others"
            )
        record = Checkpoint.from_json(entry, folder)
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint in {folder}: {error}. A checkpoint folder holds {CONFIG} and {WEIGHTS}; "
            "'python -m neural_expm.training publish NAME --dry-run --folder FOLDER' writes one"
        ) from error
    except (ValueError, ManifestError) as error:
        raise CheckpointError(
            f"{path} does not describe a neural_expm checkpoint: {error}; ask its author to publish it anew"
        ) from error
    locate(folder, record.file, record.name)
    return record


def write_folder(record: Checkpoint, content: bytes, folder: Path) -> Checkpoint:
    """Write a checkpoint folder, weights first, so that a description never stands beside missing weights.

    Args:
        record: what to state about the weights; its digest and size must be those of ``content``.
        content: the weight file.
        folder: made if it is not there; files of these three names are replaced.

    Returns:
        The record of what has been written.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    written = replace(record, file=WEIGHTS, root=folder)
    entry = {"format": FORMAT, **replace(written, repo="", revision="").to_json()}
    write_atomically(folder / WEIGHTS, content)
    write_atomically(folder / CONFIG, json.dumps(entry, indent=2, ensure_ascii=False).encode() + b"\n")
    write_atomically(folder / CARD, model_card(written).encode())
    return written
