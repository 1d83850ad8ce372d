"""A checkpoint folder to the Hub."""

from __future__ import annotations

from pathlib import Path

from ..errors import HubError
from .address import HubId
from .fetch import Access, answer_seconds
from .folder import CARD, CONFIG, WEIGHTS


def upload(
    folder: Path, repo: str, access: Access, *, private: bool = False, message: str = "Upload checkpoint"
) -> HubId:
    """Make the repository if it is not there and commit the three files of a checkpoint folder in one commit.

    Args:
        folder: see ``folder.write_folder``; other files in it stay at home.
        repo: ``org/name``.
        access: token and endpoint; the token must be one that may write.
        private: whether a new repository is private; an existing one stays as it is.
        message: of the commit.

    Returns:
        The repository at the commit: the id that pins what was uploaded.

    Raises:
        HubError: offline, no answer, or the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import get_session

    where = f"{access.url}/{repo}"
    if access.offline:
        raise HubError(f"cannot upload {folder} to {where} offline; unset HF_HUB_OFFLINE, or try a dry run")
    api = HfApi(endpoint=access.base, token=access.token)
    try:
        # huggingface_hub would wait for a silent server without a limit: ask for a sign of life first.
        get_session().head(access.base, timeout=answer_seconds())
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[WEIGHTS, CONFIG, CARD],
            commit_message=message,
        )
    except Exception as error:  # transport errors differ between huggingface_hub versions: requests, httpx, …
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            next_move = f"the token may not write there ({status}); 'hf auth login' with one that may"
        elif status is not None:
            next_move = (
                f"the Hub answers {status}: {getattr(error, 'server_message', None) or 'no reason given'}"
            )
        else:
            next_move = f"{type(error).__name__}: {error}; check the connection and HF_ENDPOINT"
        raise HubError(f"cannot upload {folder} to {where}: {next_move}") from error
    return HubId(repo, commit.oid)
