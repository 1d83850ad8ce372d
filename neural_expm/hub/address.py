"""What a user may write where a checkpoint is asked for: a name, a folder, or a Hub id and its revision."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from ..errors import InputError

# As the Hub has them: at most 96 characters, no "--" and no "..", no "-" or "." at either end.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_]|[.-](?![.-]))*(?<![.-])"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9_](?:[\w./-]*[\w])?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubId:
    """A repository on the Hub at a revision: a branch, a tag, or a 40-hex commit, which pins it."""

    repo: str
    revision: str = "main"

    @property
    def pinned(self) -> bool:
        """Whether the revision can never mean other bytes than today."""
        return _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"


def as_path(text: str | os.PathLike[str]) -> Path | None:
    """The folder that ``text`` means, or None if it reads as a name or a Hub id.

    A string is a path if it looks like one (``./x``, ``../x``, ``/x``, ``~/x``, ``C:\\x``) or if it exists.

    Raises:
        InputError: it can be none of the three.
    """
    if not isinstance(text, str | os.PathLike):
        raise InputError(
            f"{text!r} is no checkpoint; expected a shipped name, a folder or a Hub id 'org/name'"
        )
    name = os.fspath(text)
    if "\0" in name:
        raise InputError(f"{name!r} is neither a name nor a path: it has a null character")
    looks = name.startswith((".", "~")) or bool(PureWindowsPath(name).anchor) or name.endswith(("/", os.sep))
    if isinstance(text, str) and not looks and not os.path.exists(name):
        return None
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(f"{name!r}: {error}; give the whole path") from error


def as_hub_id(text: str, revision: str | None = None) -> HubId | None:
    """``org/name`` or ``org/name@revision`` as a :class:`HubId`; None for a string that has no slash.

    Raises:
        InputError: the Hub allows no such repository or revision; or two revisions are given.
    """
    repo, at, inline = text.partition("@")
    if "/" not in repo:
        return None
    if _REPOSITORY.fullmatch(repo) is None or len(repo) > 96:
        raise InputError(
            f"{text!r} is neither an existing folder nor a Hub id; expected 'org/name' or 'org/name@revision'"
        )
    if at and revision is not None and inline != revision:
        raise InputError(f"{text!r} names one revision and revision={revision!r} another; give one of them")
    chosen = inline if at else (revision or "main")
    if _REVISION.fullmatch(chosen) is None or ".." in chosen or "//" in chosen:
        raise InputError(f"{text!r}: revision {chosen!r} is not the name of a branch, a tag or a commit")
    return HubId(repo, chosen)
