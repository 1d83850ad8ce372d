"""``from_pretrained``, ``save_pretrained``, ``push_to_hub`` for our networks, by the Hub's conventions.

The methods have the names and arguments of ``huggingface_hub.PyTorchModelHubMixin``.  They are not inherited
from it: that would import ``huggingface_hub`` with the package, and it checks neither digests nor the rest.

A network does not know where weights come from: ``hub`` hands it a :class:`Store`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from ..errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Store:
    """Where networks come from and go to: ``hub`` has the functions.

    Attributes:
        load: name, folder or Hub id, and options → the network.
        save: network, record, folder → a checkpoint folder.
        upload: folder, repository, and options → the pinned Hub id.
    """

    load: Callable[..., nn.Module]
    save: Callable[[Any, Any, Path], Any]
    upload: Callable[..., str]


class Pretrained:
    """Mixin for ``nn.Module``.

    Attributes:
        checkpoint: the record that the weights were loaded with; None for a network made by hand.
    """

    checkpoint: Any = None
    store: ClassVar[Store]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """A copy of a pretrained network, in eval mode with frozen weights; yours to move, cast or train.

        Args:
            pretrained_model_name_or_path: a shipped name, a folder, or a Hub id.
            force_download: fetch again what the cache has.
            token: for private repositories.
            cache_dir: of the Hub's files.
            local_files_only: make no request.
            revision: branch, tag or commit.

        Raises:
            CheckpointError: the checkpoint holds a network of another class; or see ``neural_expm.load``.
        """
        network = cls.store.load(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        if not isinstance(network, cls):
            raise CheckpointError(
                f"{os.fspath(pretrained_model_name_or_path)!r} holds a {type(network).__name__}, not a "
                f"{cls.__name__}; call {type(network).__name__}.from_pretrained or neural_expm.load"
            )
        return network

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        checkpoint: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write ``model.safetensors``, ``config.json``, ``README.md``: what :meth:`from_pretrained` reads.

        Args:
            save_directory: made if it is not there.
            checkpoint: a ``neural_expm.Checkpoint`` with what to promise (domain, bound, …); None for the record
                that the network was loaded with.  Digest and size are those of the weights as they are now.
            repo_id: with ``push_to_hub``, the repository; the name of the folder if not given.
            push_to_hub: upload the folder too.
            **push_to_hub_kwargs: ``token``, ``private``, ``commit_message``.

        Returns:
            The pinned Hub id if pushed, else None.

        Raises:
            CheckpointError: it is not known what the network promises, or the folder cannot be written.
        """
        record = checkpoint or self.checkpoint
        if record is None:
            raise CheckpointError(
                f"this {type(self).__name__} has no record of its domain and error bound; "
                "give checkpoint=neural_expm.Checkpoint(…)"
            )
        folder = Path(save_directory)
        self.store.save(self, record, folder)
        if not push_to_hub:
            return None
        return self.store.upload(folder, repo_id or folder.resolve().name, **push_to_hub_kwargs)

    def push_to_hub(self, repo_id: str, *, checkpoint: Any = None, **options: Any) -> str | None:
        """Upload to the Hub.

        Args:
            repo_id: ``org/name``; made if it is not there.
            checkpoint: see :meth:`save_pretrained`.
            **options: ``token``, ``private``, ``commit_message``.

        Returns:
            ``org/name@commit``, which pins what was uploaded.

        Raises:
            HubError: the Hub cannot be reached, or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self.save_pretrained(
                folder, checkpoint=checkpoint, repo_id=repo_id, push_to_hub=True, **options
            )
