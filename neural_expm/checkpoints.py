"""Verify a checkpoint and build its network: damaged or missing weights raise, random ones never run.

A weight file is safetensors.  Its metadata key ``config`` holds JSON: ``format``, ``name``, ``function``,
``family`` and ``network`` (what the class needs to rebuild itself), so the file can stand alone.  Where the
bytes come from is the business of ``hub``.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _len_torch_function_stack, _pop_mode_temporarily

from .errors import CheckpointError
from .manifest import FUNCTIONS, Checkpoint
from .networks import network_class
from .networks.derived import Derived
from .networks.protocols import Traceable
from .safetensors_header import read_header, strict_json

FORMAT = 1
MAX_BYTES = 64 * 2**20  # no checkpoint of these families is near it; a larger file is not one of ours
MAX_BUILD_BYTES = 2 * 2**30  # what a configuration may allocate while its network is built
CONFIG_TYPES = {"format": int, "name": str, "function": str, "family": str, "network": dict}
REINSTALL = "reinstall neural_expm, or name another checkpoint"


def locate(root: Path, file: str, name: str = "?") -> Path:
    """The path of ``file`` below ``root``, once it is certain that it stays there.

    A symbolic link may lead elsewhere inside ``root`` only.  The one exception is the Hub's cache, whose
    ``snapshots/<commit>`` hold links into the ``blobs`` beside them.

    Raises:
        CheckpointError: an absolute name or one with ``..`` (by the rules of POSIX or Windows), or a link
            that leads out of ``root``.
    """
    parts = file.replace("\\", "/").split("/")
    if (
        not file
        or file != file.strip()
        or {"", ".", ".."} & set(parts)
        or PureWindowsPath(file).anchor
        or ":" in file
    ):
        raise CheckpointError(
            f"checkpoint {name!r}: the file name {file!r} leaves the folder {root}; "
            "expected a relative name such as 'model.safetensors'. Do not use this checkpoint"
        )
    path, home = root / file, root.resolve()
    homes = [home]
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        homes += [home.parents[1] / "blobs", home.parents[2] / "blobs"]
    target = path.resolve()
    if not any(target.is_relative_to(allowed) for allowed in homes):
        raise CheckpointError(
            f"checkpoint {name!r}: {path} is a link to {target}, outside its folder; "
            f"copy the file into {root}"
        )
    return path


def read_verified(
    path: Path, sha256: str | None = None, size: int | None = None, name: str = "?", again: str = REINSTALL
) -> bytes:
    """The bytes of a weight file, after its size and digest have been checked.

    Args:
        path: the file.
        sha256: its digest in hex; None for unknown.
        size: its bytes; None for unknown.
        name: of the checkpoint, for the message.
        again: the next move, for the message.

    Raises:
        CheckpointError: missing, unreadable, too large, or not the bytes that were promised.
    """
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
    """Configuration and tensors of a safetensors file; the header is checked before anything is allocated.

    Raises:
        CheckpointError: not safetensors, no configuration, or one that does not follow the schema.
    """
    import safetensors.torch  # not with the package: it takes as long as the rest of checkpoints.py

    try:
        _, metadata = read_header(content)
        config = strict_json(metadata["config"])
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint {name!r} is not a safetensors file with a neural_expm configuration: {error!r}; "
            f"{REINSTALL}"
        ) from error
    _check_config(config, name)
    return config, tensors


def _check_config(config: Any, name: str) -> None:
    given = {key: type(value) for key, value in config.items()} if isinstance(config, dict) else type(config)
    if given != CONFIG_TYPES or config["format"] != FORMAT or config["function"] not in FUNCTIONS:
        text = json.dumps(config)
        raise CheckpointError(
            f"checkpoint {name!r}: its configuration is {text[:200] + '…' * (len(text) > 200)}, expected "
            f"format {FORMAT} (a newer neural_expm may read others), a function of {FUNCTIONS}, and the keys "
            f"{ {key: kind.__name__ for key, kind in CONFIG_TYPES.items()} }"
        )


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str = "?") -> nn.Module:
    """The network of a configuration with these weights: on the CPU, eval mode, weights frozen.

    Raises:
        CheckpointError: the configuration and the tensors disagree (names, shapes, NaN).
    """
    # All calls of a process share a network, whatever the default device is when the first of them comes.
    with untraced(), torch.device("cpu"):
        return _built(config, tensors, name)


@contextmanager
def untraced() -> Iterator[None]:
    """Plain tensors, even if the first call of a function stands inside a transform or a tracer.

    Neither must wrap, freeze or record the weights; ``torch.export`` puts modes of both kinds on their stacks.
    """
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch.utils._python_dispatch import _disable_current_modes

    with ExitStack() as stack:
        stack.enter_context(temporarily_clear_interpreter_stack())
        stack.enter_context(_disable_current_modes())
        if torch.compiler.is_compiling():  # elsewhere such modes are a program's own
            for _ in range(_len_torch_function_stack()):
                stack.enter_context(_pop_mode_temporarily())
        yield


def _built(config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> nn.Module:
    network = _construct(config, name)
    expected = network.state_dict()
    if set(expected) != set(tensors):
        raise CheckpointError(
            f"checkpoint {name!r}: configuration and tensors disagree: missing "
            f"{sorted(set(expected) - set(tensors))}, unexpected {sorted(set(tensors) - set(expected))}"
        )
    converted = {key: _fitted(key, tensor, expected[key], name) for key, tensor in tensors.items()}
    # Weights read under torch.inference_mode() may serve a training step later: make normal tensors.
    with torch.inference_mode(False):
        network.load_state_dict(converted)
    network.eval().requires_grad_(False)
    if callable(program := getattr(network, "program", None)):
        program()  # made now, because a tracer cannot read weights into numbers
    return network


def _construct(config: Mapping[str, Any], name: str) -> nn.Module:
    """The network before its weights, within a memory budget, the user's random numbers untouched."""
    network: Any = network_class(config["family"], config["function"])
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]), _Budget(MAX_BUILD_BYTES):
            return network.from_config(dict(config["network"]))
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"checkpoint {name!r}: {error}") from error
        raise CheckpointError(
            f"checkpoint {name!r}: {network.__name__} cannot be built from its configuration: {error!r}; "
            f"{REINSTALL}"
        ) from error


class _Budget(TorchFunctionMode):
    """Raises once torch functions have returned too many bytes: a tiny file may ask for a huge network."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.used = limit, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.used += result.numel() * result.element_size()
            if self.used > self.limit:
                raise CheckpointError(f"its configuration asks for more than the {self.limit} bytes allowed")
        return result


def _fitted(key: str, tensor: Tensor, expected: Tensor, name: str) -> Tensor:
    """A stored tensor in the dtype of the module: floating from any floating (half stored), else equal."""
    if tensor.shape != expected.shape:
        raise CheckpointError(
            f"checkpoint {name!r}: tensor {key!r} has shape {tuple(tensor.shape)}, "
            f"the configuration asks for {tuple(expected.shape)}"
        )
    if tensor.dtype != expected.dtype and not (tensor.is_floating_point() and expected.is_floating_point()):
        raise CheckpointError(
            f"checkpoint {name!r}: tensor {key!r} is {tensor.dtype}, "
            f"the configuration asks for {expected.dtype}"
        )
    converted = tensor.to(expected.dtype)
    if converted.is_floating_point() and not bool(torch.isfinite(converted).all()):
        raise CheckpointError(f"checkpoint {name!r}: tensor {key!r} has NaN or infinite entries")
    return converted


def load_record(record: Checkpoint) -> nn.Module:
    """The network of a manifest record, verified against it; read once per process.

    Raises:
        CheckpointError: see :func:`locate`, :func:`read_verified`, :func:`parse`, :func:`build`; or the file
            holds another function or family than the record says.
    """
    path = locate(record.root, record.file, record.name)
    network = _load(record.name, record.function, record.family, str(path), record.sha256, record.size)
    network.checkpoint = record  # type: ignore[assignment]
    return network


@lru_cache(maxsize=32)
def _load(name: str, function: str, family: str, path: str, sha256: str, size: int) -> nn.Module:
    config, tensors = parse(read_verified(Path(path), sha256, size, name), name)
    if (config["function"], config["family"]) != (function, family):
        raise CheckpointError(
            f"checkpoint {name!r}: {path} holds {config['function']!r} by {config['family']!r}, "
            f"the manifest says {function!r} by {family!r}; {REINSTALL}"
        )
    network = build(config, tensors, name)
    if isinstance(network, Derived):
        network.share()
    return network


def copied(network: nn.Module) -> nn.Module:
    """A network of one's own: what is done to it changes no other call of this process."""
    with untraced(), torch.device("cpu"), torch.inference_mode(False):
        if isinstance(network, Traceable):
            network.program()  # once for all copies: a tracer has no weights to make it of
        return copy.deepcopy(network)


def unchanged(network: nn.Module, record: Checkpoint) -> bool:
    """Whether the weights are still those of the record."""
    try:
        ours, theirs = network.state_dict(), load_record(record).state_dict()
    except CheckpointError:
        return False
    return ours.keys() == theirs.keys() and all(
        torch.equal(weight.detach().cpu(), theirs[name]) for name, weight in ours.items()
    )


def serialize(
    network: nn.Module, *, name: str, function: str, family: str, dtype: torch.dtype | None = None
) -> bytes:
    """A weight file, as bytes.

    Args:
        network: one of ours; its ``config`` goes into the file.
        name: of the checkpoint.
        function: that it computes.
        family: of networks that it belongs to.
        dtype: store floating tensors so (half precision where the error does not move); None keeps them.
    """
    import safetensors.torch

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
    return safetensors.torch.save(tensors, metadata={"config": json.dumps(config, sort_keys=True)})


def fingerprint(content: bytes) -> dict[str, Any]:
    """``{"sha256", "size"}`` of a weight file, for its manifest entry."""
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def save(
    network: nn.Module, path: Path, *, name: str, function: str, family: str, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Write a weight file aside, then rename it into place: the earlier file stays whole if anything fails.

    Args:
        network: one of ours.
        path: where to write.
        name: of the checkpoint.
        function: that it computes.
        family: of networks that it belongs to.
        dtype: of the stored floating tensors, see :func:`serialize`.

    Returns:
        ``{"file", "sha256", "size"}`` for the manifest entry.
    """
    content = serialize(network, name=name, function=function, family=family, dtype=dtype)
    write_atomically(path, content)
    return {"file": path.name, **fingerprint(content)}


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
