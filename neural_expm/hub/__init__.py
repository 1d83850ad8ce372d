"""Where a checkpoint comes from: embedded in the package → a folder → the local cache of the Hub → the Hub.

Only a string that names a Hub repository ever leads to a request.  Whatever does not ship with the package is
proven before it is believed: digest and size before a byte is parsed, a "certified" bound from the weights.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..checkpoints import copied, fingerprint, load_record, locate, read_verified, serialize
from ..errors import InputError, UnknownModelError
from ..manifest import Checkpoint, full_name, shipped, unknown
from ..networks.pretrained import Pretrained, Store
from .address import HubId, as_hub_id, as_path
from .fetch import Access, fetch_checked
from .folder import CONFIG, MAX_CONFIG_BYTES, read_folder, write_folder
from .upload import upload

__all__ = ["Access", "HubId", "load", "resolve", "save", "upload"]

_known: dict[tuple[str, Access], Checkpoint] = {}


def resolve(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    access: Access | None = None,
    refresh: bool = True,
) -> Checkpoint:
    """The record of a checkpoint, wherever it is; its ``root`` and ``file`` are the verified local copy.

    Args:
        model: a shipped name (``"expm-equivariant"``), a folder, or a Hub id (``"org/name"`` or
            ``"org/name@revision"``).
        revision: of a Hub repository: a branch, a tag, or a 40-hex commit, which is asked for only once.
        access: token, cache, endpoint; None for what the environment says.
        refresh: whether a Hub branch is asked for news; False keeps what this process has resolved before, so
            that a call inside a training loop makes no request.

    Raises:
        UnknownModelError: no such checkpoint, repository or revision; the message lists what exists.
        InputError: the string is neither a name nor a folder nor a Hub id.
        CheckpointError: it is there, but damaged, tampered with, or claims what its weights do not prove.
        HubError: the Hub cannot be reached, or refuses.
    """
    name = full_name(model, torch.get_default_dtype())
    if isinstance(name, str) and name in shipped():
        if revision is not None:
            raise InputError(
                f"{name!r} ships with the package; revision={revision!r} is for a Hub id such as 'org/name'"
            )
        return shipped()[name]
    if (path := as_path(model)) is not None:
        return _from_folder(path)
    text, access = str(model), access or Access()
    source = as_hub_id(text, revision)
    if source is None:
        raise UnknownModelError(f"{unknown(text)}. A folder or a Hub id such as 'org/name' can be given too")
    key = (str(source), access)
    if refresh or key not in _known:
        _known[key] = _from_hub(source, access)
    return _known[key]


def load(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> nn.Module:
    """The network of a checkpoint, a copy: eval mode, gradients flow to its input and not to its weights.

    Args:
        name: a shipped name, a folder, or a Hub id with or without ``@revision``; tried in this order.
        revision: of a Hub repository: branch, tag or commit.
        token: for private repositories; None for ``HF_TOKEN`` or ``hf auth login``, False for none.
        cache_dir: of the Hub's files; None for the one in ``HF_HOME``.
        endpoint: of the Hub; None for ``HF_ENDPOINT``.
        local_files_only: make no request; always so under ``HF_HUB_OFFLINE=1``.
        force_download: fetch again what the cache has.

    Returns:
        A module; its attribute ``checkpoint`` is the record of what was loaded.

    Raises:
        UnknownModelError, InputError, CheckpointError, HubError: see :func:`resolve`.
    """
    access = Access(token, cache_dir, endpoint, local_files_only, force_download)
    return copied(load_record(resolve(name, revision=revision, access=access)))


def save(network: nn.Module, record: Checkpoint, folder: Path) -> Checkpoint:
    """Write a network as a checkpoint folder: its weights as they are now, under the promise of ``record``.

    Returns:
        The record with the digest and size of these weights.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    content = serialize(network, name=record.name, function=record.function, family=record.family)
    return write_folder(replace(record, **fingerprint(content)), content, folder)


def _push(
    folder: Path,
    repo: str,
    token: str | bool | None = None,
    private: bool = False,
    commit_message: str = "Upload checkpoint",
) -> str:
    return str(upload(folder, repo, Access(token), private=private, message=commit_message))


# Networks lie below this module and do not import it: they are handed what their conventions need.
Pretrained.store = Store(load, save, _push)


def _from_folder(folder: Path) -> Checkpoint:
    from .proof import prove  # here and below: what ships with the package was proven before

    record = read_folder(folder)
    again = f"{folder} is incomplete or was edited: copy or publish it again"
    read_verified(locate(folder, record.file, record.name), record.sha256, record.size, record.name, again)
    return prove(record)


def _from_hub(source: HubId, access: Access) -> Checkpoint:
    from .proof import prove

    record = fetch_checked(source, CONFIG, access, lambda path: read_folder(path.parent), MAX_CONFIG_BYTES)
    # From here on the commit, not the branch: the weights must be those that config.json speaks of.
    commit = HubId(source.repo, record.root.name)

    def check(path: Path) -> bytes:
        return read_verified(
            path, record.sha256, record.size, f"{commit}", "the download is damaged or forged"
        )

    fetch_checked(commit, record.file, access, check)
    return prove(replace(record, repo=commit.repo, revision=commit.revision))
