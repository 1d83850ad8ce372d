"""One file at a time from the Hub into its local cache, with every failure said in our words.

``huggingface_hub`` does the transport: cache layout, locks between processes, resumption, redirects, tokens,
progress bar.  Added here: a first request that fails within seconds (its own retries take 23 s and more), a
limit on the size before the download, and one fresh download when what arrived is not what was promised.

It is imported inside the functions: ``import neural_expm`` must not pay for it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from ..checkpoints import MAX_BYTES
from ..errors import CheckpointError, HubError, NeuralExpmError, UnknownModelError
from .address import HubId

T = TypeVar("T")
# Seconds until a server that does not answer counts as dead; HF_HUB_ETAG_TIMEOUT has the last word.
ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Access:
    """How to reach the Hub; every field has the meaning and the default that ``huggingface_hub`` gives it.

    Attributes:
        token: for private repositories; None for ``HF_TOKEN`` or that of ``hf auth login``, False for none.
        cache_dir: None for the one of ``HF_HUB_CACHE`` or ``HF_HOME``.
        endpoint: None for ``HF_ENDPOINT``.
        local_files_only: no request, whatever happens; always so under ``HF_HUB_OFFLINE=1``.
        force_download: fetch again what the cache has.
    """

    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    endpoint: str | None = None
    local_files_only: bool = False
    force_download: bool = False

    def __repr__(self) -> str:
        return f"Access(endpoint={self.url!r}, cache={str(self.cache)!r}, offline={self.offline})"

    @property
    def offline(self) -> bool:
        """Whether no request may be made."""
        from huggingface_hub import constants

        # The variable too, not only what huggingface_hub read when it was imported.
        now = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
        return self.local_files_only or now or constants.HF_HUB_OFFLINE

    @property
    def cache(self) -> Path:
        """The folder of the cache."""
        from huggingface_hub import constants

        return Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser()

    @property
    def base(self) -> str:
        """The endpoint, as requests are sent to it."""
        from huggingface_hub import constants

        # The variable first: huggingface_hub reads it once, when it is imported.
        return (self.endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")

    @property
    def url(self) -> str:
        """The endpoint, as it may be shown: without a user name or password."""
        parts = urlsplit(self.base)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def url_of(self, source: HubId, file: str) -> str:
        """The address of a file, as it may be shown."""
        return f"{self.url}/{source.repo}/resolve/{source.revision}/{file}"


def answer_seconds() -> float:
    """How long to wait for an answer."""
    return float(os.environ.get("HF_HUB_ETAG_TIMEOUT", ANSWER_SECONDS))


def cached(source: HubId, file: str, access: Access) -> Path | None:
    """The file in the local cache, without a request; for a branch, as it was when last asked."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.repo, file, cache_dir=access.cache, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def fetch(source: HubId, file: str, access: Access, limit: int = MAX_BYTES) -> Path:
    """The path of a file in the local cache: from there if the revision is pinned, else from the Hub.

    A branch is asked anew each time.  If the Hub does not answer, what the cache has is used, with a warning.

    Args:
        source: repository and revision.
        file: name inside the repository.
        access: how to reach the Hub.
        limit: bytes above which the file is refused before it is downloaded.

    Returns:
        ``…/snapshots/<commit>/<file>``.

    Raises:
        UnknownModelError: no such repository, revision or file.
        HubError: the Hub cannot be reached, refuses, or may not be asked and the cache has no copy.
        CheckpointError: the file is larger than ``limit``, or the cache cannot be written.
    """
    here = cached(source, file, access)
    if access.offline:
        if here is not None:
            return here
        raise HubError(
            f"{source}: {file} is not in the cache {access.cache} and no request may be made "
            f"(HF_HUB_OFFLINE or local_files_only); go online once, or copy a cache that has it"
        )
    if here is not None and source.pinned and not access.force_download:
        return here
    try:
        return _download(source, file, access, limit)
    except Exception as error:  # transport errors differ between huggingface_hub versions: requests, httpx, …
        explained = error if isinstance(error, NeuralExpmError) else _explain(error, source, file, access)
        if here is None or not isinstance(explained, HubError) or access.force_download:
            raise explained from error
        warnings.warn(f"{explained}. Using the copy of {here.parent.name[:12]} in the cache.", stacklevel=2)
        return here


def fetch_checked(
    source: HubId, file: str, access: Access, check: Callable[[Path], T], limit: int = MAX_BYTES
) -> T:
    """``check(path)`` of a fetched file; what fails it leaves the cache and is fetched once more.

    Args:
        source: repository and revision.
        file: name inside the repository.
        access: how to reach the Hub.
        check: raises CheckpointError for a file that is not what was promised.
        limit: see :func:`fetch`.

    Raises:
        CheckpointError: what ``check`` said of the second download, with the address; or see :func:`fetch`.
    """
    path = fetch(source, file, access, limit)
    try:
        return check(path)
    except CheckpointError as error:
        where = access.url_of(source, file)
        if access.offline:
            raise CheckpointError(
                f"{error}; go online, so that a fresh copy can be fetched from {where}"
            ) from error
        drop(path, access.cache)
    path = fetch(source, file, access, limit)
    try:
        return check(path)
    except CheckpointError as error:
        drop(path, access.cache)
        raise CheckpointError(
            f"{error}. {where} was fetched twice and removed from the cache {access.cache} both times: "
            f"do not use it, and tell the owner of {access.url}/{source.repo}"
        ) from error


def drop(path: Path, cache: Path) -> None:
    """Remove a file from the cache, with the blobs that its links lead to; what lies elsewhere stays.

    Raises:
        CheckpointError: the cache is read-only.
    """
    cache = cache.resolve()
    while path.parent.resolve().is_relative_to(cache):
        following = path.parent / os.readlink(path) if path.is_symlink() else None
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{path} is damaged and cannot be removed: {error}; remove it by hand, or set HF_HOME to a "
                "folder that you may write"
            ) from error
        if following is None:
            return
        path = following


def _download(source: HubId, file: str, access: Access, limit: int) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    from .. import __version__

    address = hf_hub_url(source.repo, file, revision=source.revision, endpoint=access.base)
    # Asked first and once: this is what a dead endpoint fails on.
    size = get_hf_file_metadata(address, token=access.token, timeout=answer_seconds()).size
    if size is not None and size > limit:
        raise CheckpointError(
            f"{access.url_of(source, file)} has {size} bytes, more than the {limit} allowed: "
            "it is not one of ours"
        )
    path = hf_hub_download(
        source.repo,
        file,
        revision=source.revision,
        endpoint=access.base,
        cache_dir=access.cache,
        token=access.token,
        force_download=access.force_download,
        etag_timeout=answer_seconds(),
        library_name="neural_expm",
        library_version=__version__,
    )
    return Path(path)


def _explain(error: Exception, source: HubId, file: str, access: Access) -> NeuralExpmError:
    """An error of ``huggingface_hub`` in our words; the status and the address get in, tokens never do."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where, page = access.url_of(source, file), f"{access.url}/{source.repo}"
    log_in = "log in with 'hf auth login', or set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return HubError(f"{where}: access is restricted; ask for it at {page}, then {log_in}")
    if isinstance(error, RevisionNotFoundError):
        return UnknownModelError(
            f"{where}: {source.repo} has no revision {source.revision!r}; see {page}/commits"
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return UnknownModelError(
            f"{where}: {source} has no {file}, so it is not a neural_expm checkpoint, or an "
            f"incomplete one; see {page}"
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return UnknownModelError(
            f"{where}: no repository {source.repo!r}, or a private one, and no such folder here; "
            f"check the spelling, or {log_in}"
        )
    if status == 403:
        return HubError(f"{where}: your token may not read it (403); {log_in} of an account that may")
    if status is not None:
        return HubError(
            f"{where}: the Hub answers {status}; try again in a while, or use local_files_only=True"
        )
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
        return CheckpointError(
            f"{where}: cannot write the cache {access.cache}: {error}; set HF_HOME, or give cache_dir="
        )
    cause = error.__cause__ or error
    return HubError(
        f"{where}: {access.url} gave no usable answer within {answer_seconds():g} s "
        f"({type(cause).__name__}: {cause}); check the connection and HF_ENDPOINT, or use a cached copy with "
        "HF_HUB_OFFLINE=1"
    )
