"""``checkpoints_manifest.json`` → frozen :class:`Checkpoint` records.

The manifest is the one list of weights.  Reading it touches no weight file and no network, so that routing can
decide who would answer before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from .domain import Domain
from .errors import ManifestError, UnknownModelError

FORMAT = 1
PACKAGE = Path(__file__).resolve().parent
FUNCTIONS = ("expm", "sign", "sqrtm")
FAMILIES = ("equivariant", "transformer", "relu", "mlp")
BOUND_KINDS = ("certified", "statistical")


@dataclass(frozen=True)
class Checkpoint:
    """One entry of the manifest: what a network computes, where, how well, and where its weights are.

    Attributes:
        name: unique name, as given to ``model=``.
        function: ``"expm"``, ``"sign"`` or ``"sqrtm"``.
        family: ``"equivariant"``, ``"transformer"``, ``"relu"`` or ``"mlp"``.
        dtype: the precision that the weights were made for, e.g. ``"float32"``.
        domain: the set of matrices that ``bound`` speaks of.
        bound: relative error promised on ``domain`` before rounding (see ``bound_kind``).
        bound_kind: ``"certified"`` (proven, recomputable) or ``"statistical"`` (split-conformal, measured).
        file: weight file, relative to the manifest's folder of weights.
        sha256, size: digest (hex) and bytes of that file, checked before anything is parsed.
        repo, revision: Hugging Face Hub repository and pinned 40-hex commit; empty while unpublished.
        trained_by: the one command that makes these weights again.
        license: SPDX identifier.
        measured: error quantiles with distribution, sample size and seed.
        certificate: the stated figures that ``certificate.py`` recomputes.
        card: what structure or tricks the network uses, for its model card.
        root: the folder that ``file`` is relative to.
    """

    name: str
    function: str
    family: str
    dtype: str
    domain: Domain
    bound: float
    bound_kind: str
    file: str
    sha256: str
    size: int
    repo: str = ""
    revision: str = ""
    trained_by: str = ""
    license: str = "Apache-2.0"
    measured: Mapping[str, Any] = field(default_factory=dict, hash=False)
    certificate: Mapping[str, Any] = field(default_factory=dict, hash=False)
    card: str = ""
    root: Path = PACKAGE / "weights"

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], root: Path = PACKAGE / "weights") -> Checkpoint:
        """Validate one entry.

        Raises:
            ManifestError: a key is unknown or missing, or a value is not of its kind.
        """
        name = entry.get("name", "?")
        known = {f.name for f in fields(cls)} - {"root"}
        required = {
            "name",
            "function",
            "family",
            "dtype",
            "domain",
            "bound",
            "bound_kind",
            "file",
            "sha256",
            "size",
        }
        if unknown := sorted(set(entry) - known):
            raise ManifestError(f"checkpoint {name!r}: unknown keys {unknown}; known are {sorted(known)}")
        if missing := sorted(required - set(entry)):
            raise ManifestError(f"checkpoint {name!r}: missing keys {missing}")
        for key, allowed in (("function", FUNCTIONS), ("family", FAMILIES), ("bound_kind", BOUND_KINDS)):
            if entry[key] not in allowed:
                raise ManifestError(
                    f"checkpoint {name!r}: {key} is {entry[key]!r}, expected one of {allowed}"
                )
        digest = entry["sha256"]
        if not (isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
            raise ManifestError(
                f"checkpoint {name!r}: sha256 is {digest!r}, expected 64 lower-case hex digits"
            )
        if not (isinstance(entry["size"], int) and entry["size"] > 0):
            raise ManifestError(
                f"checkpoint {name!r}: size is {entry['size']!r}, expected bytes as a positive int"
            )
        return cls(**{**entry, "domain": Domain.from_json(entry["domain"], name), "root": root})

    def to_json(self) -> dict[str, Any]:
        """The manifest entry, with keys in the order of the fields."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "root"}
        record["domain"] = self.domain.to_json()
        return record


def manifest_path() -> Path:
    """The shipped manifest: inside the wheel, or at the root of a checkout."""
    inside = PACKAGE / "checkpoints_manifest.json"
    return inside if inside.exists() else PACKAGE.parent / "checkpoints_manifest.json"


def read_manifest(path: Path, root: Path = PACKAGE / "weights") -> dict[str, Checkpoint]:
    """All records of a manifest file, by name.

    Raises:
        ManifestError: the file is missing, is not JSON, or does not follow the schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(f"cannot read the manifest {path}: {error}; reinstall neural_expm") from error
    except json.JSONDecodeError as error:
        raise ManifestError(f"the manifest {path} is not JSON: {error}; reinstall neural_expm") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or "checkpoints" not in content:
        raise ManifestError(f"the manifest {path} has no {{'format': {FORMAT}, 'checkpoints': […]}}")
    records: dict[str, Checkpoint] = {}
    for entry in content["checkpoints"]:
        record = Checkpoint.from_json(entry, root)
        if record.name in records:
            raise ManifestError(f"the manifest {path} lists {record.name!r} twice")
        records[record.name] = record
    return records


@lru_cache(maxsize=1)
def shipped() -> dict[str, Checkpoint]:
    """The records of the shipped manifest, read once."""
    return read_manifest(manifest_path())


def list_models(function: str | None = None) -> list[Checkpoint]:
    """The shipped checkpoints, all of them or those of one function.

    Args:
        function: ``"expm"``, ``"sign"``, ``"sqrtm"``, or None for all.

    Raises:
        UnknownModelError: there is no such function.
    """
    if function is not None and function not in FUNCTIONS:
        raise UnknownModelError(f"no matrix function {function!r}; there are {', '.join(FUNCTIONS)}")
    return [record for record in shipped().values() if function in (None, record.function)]


def find(name: str) -> Checkpoint:
    """The shipped record of this name.

    Raises:
        UnknownModelError: no such checkpoint; the message lists those that exist.
    """
    try:
        return shipped()[name]
    except KeyError:
        raise UnknownModelError(
            f"no checkpoint {name!r}; there are {', '.join(sorted(shipped())) or 'none'}"
        ) from None
