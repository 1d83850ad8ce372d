"""``checkpoints_manifest.json`` → frozen :class:`Checkpoint` records.

The manifest is the one list of weights.  Reading it touches no weight file and no network, so that routing
can decide who would answer before anything is loaded.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .domain import Domain
from .errors import ManifestError, UnknownModelError

FORMAT = 1
PACKAGE = Path(__file__).resolve().parent
FUNCTIONS = ("expm", "sign", "sqrtm")
FAMILIES = ("equivariant", "transformer", "relu", "mlp")
BOUND_KINDS = ("certified", "statistical")
DTYPES = ("float16", "bfloat16", "float32", "float64")


def _one_of(allowed: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in allowed, f"one of {allowed}"


def _matches(pattern: str, text: str) -> tuple[Callable[[Any], bool], str]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None, text


# No control characters but tab and newline, so that no record can steer the terminal that lists it.
_TEXT = _matches(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f]*", "text without control characters")
_MAPPING: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, Mapping), "an object")
# key of an entry → (test of its value, what the message says was expected)
SCHEMA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": _matches(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", "letters, digits, '.', '_', '-', at most 96"),
    "function": _one_of(FUNCTIONS),
    "family": _one_of(FAMILIES),
    "dtype": _one_of(DTYPES),
    "bound": (lambda value: type(value) in (int, float) and 0 <= value < math.inf, "a finite number ≥ 0"),
    "bound_kind": _one_of(BOUND_KINDS),
    "file": _TEXT,
    "sha256": _matches(r"[0-9a-f]{64}", "64 lower-case hex digits"),
    "size": (lambda value: type(value) is int and value > 0, "bytes as a positive int"),
    "repo": _TEXT,
    "revision": _TEXT,
    "trained_by": _TEXT,
    "license": _TEXT,
    "measured": _MAPPING,
    "certificate": _MAPPING,
    "card": _TEXT,
}
REQUIRED = {
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
        sha256, size: digest (hex) and bytes of that file, checked before anything is parsed; ``save_pretrained``
            fills them in.
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
    file: str = "model.safetensors"
    sha256: str = ""
    size: int = 0
    repo: str = ""
    revision: str = ""
    trained_by: str = ""
    license: str = "Apache-2.0"
    measured: Mapping[str, Any] = field(default_factory=dict, hash=False)
    certificate: Mapping[str, Any] = field(default_factory=dict, hash=False)
    card: str = ""
    root: Path = PACKAGE / "weights"

    def __repr__(self) -> str:
        """What tells it from the others; the attributes have the rest."""
        return (
            f"<Checkpoint {self.name}: {self.function} for {self.domain}; {self.bound:.1e} {self.bound_kind}>"
        )

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], root: Path = PACKAGE / "weights") -> Checkpoint:
        """Validate one entry.

        Raises:
            ManifestError: a key is unknown or missing, or a value is not of its kind.
        """
        name = entry.get("name", "?")
        known = {f.name for f in fields(cls)} - {"root"}
        if unknown := sorted(set(entry) - known):
            raise ManifestError(f"checkpoint {name!r}: unknown keys {unknown}; known are {sorted(known)}")
        if missing := sorted(REQUIRED - set(entry)):
            raise ManifestError(f"checkpoint {name!r}: missing keys {missing}")
        for key, value in entry.items():
            if key in SCHEMA and not SCHEMA[key][0](value):
                raise ManifestError(f"checkpoint {name!r}: {key} is {value!r}, expected {SCHEMA[key][1]}")
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
    """The shipped record of this name, or of this family in the default dtype.

    Raises:
        UnknownModelError: no such checkpoint; the message lists those that exist.
    """
    full = full_name(name, torch.get_default_dtype())
    if full not in shipped():
        raise UnknownModelError(unknown(name))
    return shipped()[full]


def full_name(name: Any, dtype: torch.dtype) -> Any:
    """A family name with a dtype, where such a checkpoint ships; anything else as it is."""
    tiered = f"{name}-{str(dtype).removeprefix('torch.')}" if isinstance(name, str) else ""
    return tiered if tiered in shipped() else name


def unknown(name: str) -> str:
    """What to say of a name that no checkpoint has: those like it first, then all."""
    names = sorted(shipped())
    like = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, like))}? " if like else ""
    return f"no checkpoint {name!r}; {hint}there are {', '.join(names) or 'none'}"
