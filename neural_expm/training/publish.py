"""Checkpoints to and from the Hub, and what is here: ``publish``, ``pull``, ``list`` and ``show``."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoints import locate, read_verified, write_atomically
from ..errors import CheckpointError, InputError, NeuralExpmError
from ..hub import Access, HubId, resolve
from ..hub.address import as_hub_id, as_path
from ..hub.fetch import fetch
from ..hub.folder import CARD, CONFIG, WEIGHTS, read_folder, write_folder
from ..hub.upload import upload
from ..manifest import FORMAT, Checkpoint, read_manifest, shipped

MANIFEST = "checkpoints_manifest.json"


def publish(argv: Sequence[str]) -> int:
    """Write the folder of a checkpoint and upload it; print the revision and the manifest entry."""
    parser = _parser("publish", "write a checkpoint folder with its model card and upload it to the Hub")
    parser.add_argument("name", help="shipped name, folder or Hub id of the checkpoint")
    parser.add_argument("--repo", metavar="ORG/NAME", help="where to; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--folder", type=Path, help="keep the written folder here")
    parser.add_argument("--message", help="commit message (default: Upload NAME)")
    parser.add_argument("--dry-run", action="store_true", help="write and check the folder, upload nothing")
    arguments = parser.parse_args(argv)
    target = None if arguments.repo is None and arguments.dry_run else _repository(arguments.repo)
    if target is not None and "@" in arguments.repo:
        raise InputError(
            f"--repo {arguments.repo!r}: a commit goes to main; give 'org/name' without a revision"
        )
    record = resolve(arguments.name)
    content = read_verified(
        locate(record.root, record.file, record.name), record.sha256, record.size, record.name
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        written = write_folder(replace(record, repo=target.repo if target else ""), content, folder)
        resolve(folder)  # what a user would get, checked as a user's copy is checked
        for file in sorted(folder.iterdir()):
            print(f"{file.stat().st_size:>10} bytes  {file if arguments.folder else file.name}")
        if arguments.dry_run or target is None:
            print("dry run: nothing was uploaded")
            return 0
        message = arguments.message or f"Upload {record.name}"
        pin = upload(folder, target.repo, Access(), private=arguments.private, message=message)
    print(f"uploaded {pin}\nuse it:  neural_expm.load({str(pin)!r})\nmanifest entry:")
    print(
        json.dumps(
            replace(written, repo=pin.repo, revision=pin.revision).to_json(), indent=2, ensure_ascii=False
        )
    )
    return 0


def pull(argv: Sequence[str]) -> int:
    """Bring a repository into a local folder and its manifest, pinned to the commit."""
    parser = _parser(
        "pull", "copy a checkpoint from the Hub into a folder, and pin it in the folder's manifest"
    )
    parser.add_argument("repo", metavar="ORG/NAME[@REVISION]")
    parser.add_argument(
        "--to", type=Path, default=Path("checkpoints"), help="folder (default: ./checkpoints)"
    )
    parser.add_argument("--offline", action="store_true", help="from the local cache only")
    arguments = parser.parse_args(argv)
    source, access = _repository(arguments.repo), Access(local_files_only=arguments.offline)
    record = resolve(str(source), access=access)
    content = read_verified(
        locate(record.root, record.file, record.name), record.sha256, record.size, record.name
    )
    folder = arguments.to / record.name
    written = write_folder(record, content, folder)
    try:
        card = fetch(HubId(record.repo, record.revision), CARD, access, limit=2**20)
        write_atomically(folder / CARD, card.read_bytes())
    except NeuralExpmError:
        pass  # a repository without a card: the one that write_folder made from the record stays
    path = arguments.to / MANIFEST
    records = read_manifest(path, arguments.to) if path.exists() else {}
    records[record.name] = replace(written, file=f"{record.name}/{WEIGHTS}", root=arguments.to)
    entries = [one.to_json() for one in records.values()]
    text = json.dumps({"format": FORMAT, "checkpoints": entries}, indent=2, ensure_ascii=False)
    write_atomically(path, text.encode() + b"\n")
    print(f"{record.repo}@{record.revision} is in {folder} and pinned in {path}")
    print(f"use it:  neural_expm.load({str(folder)!r})")
    return 0


def list_checkpoints(argv: Sequence[str]) -> int:
    """Print a table of what ships, what a folder holds and what the cache of the Hub has."""
    parser = _parser("list", "list the checkpoints that can be used without a request")
    parser.add_argument("--function", choices=("expm", "sign", "sqrtm"), help="only this function")
    parser.add_argument("--folder", type=Path, help="a checkpoint, or a folder of them")
    arguments = parser.parse_args(argv)
    rows = [
        (record.name, record.function, record.family, record.dtype, _error(record), _size(record), where)
        for record, where in _available(arguments.folder)
        if arguments.function in (None, record.function)
    ]
    print(_table(("name", "function", "family", "dtype", "error ≤", "size", "where"), rows))
    return 0


def show(argv: Sequence[str]) -> int:
    """Print all that is known about one checkpoint, after its weights have been verified."""
    parser = _parser("show", "verify one checkpoint and print its domain, bound, figures and card")
    parser.add_argument("name", help="shipped name, folder or Hub id")
    parser.add_argument("--offline", action="store_true", help="make no request")
    arguments = parser.parse_args(argv)
    record = resolve(arguments.name, access=Access(local_files_only=arguments.offline))
    path = locate(record.root, record.file, record.name)
    read_verified(path, record.sha256, record.size, record.name)
    rows = [
        (key, _readable(value))
        for key, value in {**record.to_json(), "domain": record.domain, "bound": _error(record)}.items()
        if value not in ("", {}, None) and key not in ("bound_kind", "file", "card")
    ]
    print(_table(("", ""), [*rows, ("verified", str(path))]))
    if record.card:
        print(f"\n{record.card}")
    return 0


def _parser(command: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"python -m neural_expm.training {command}", description=text)


def _repository(text: str | None) -> HubId:
    source = as_hub_id(text) if text else None
    if source is None:
        raise InputError(f"a Hub repository is needed, got {text!r}; give 'org/name' (--repo for publish)")
    return source


def _available(folder: Path | None) -> Iterable[tuple[Checkpoint, str]]:
    """Each record with the place it is in."""
    for record in shipped().values():
        there = (record.root / record.file).exists()
        yield record, "installed" if there else f"missing; on the Hub as {record.repo or '?'}"
    if folder is not None:
        if (folder / MANIFEST).exists():
            for record in read_manifest(folder / MANIFEST, folder).values():
                yield record, str(folder / record.name)
        elif (folder / CONFIG).exists() or not (inner := sorted(folder.glob(f"*/{CONFIG}"))):
            if (path := as_path(folder)) is not None:
                yield read_folder(path), str(folder)
        else:  # as save_pretrained("folder/name") leaves it
            for config in inner:
                yield read_folder(config.parent), str(config.parent)
    for snapshot in sorted(Access().cache.glob("models--*/snapshots/*")):
        try:
            record = read_folder(snapshot)
            locate(snapshot, record.file, record.name).stat()
        except (CheckpointError, OSError):
            continue  # another library's model, or a download that was never finished
        repo = snapshot.parents[1].name.removeprefix("models--").replace("--", "/")
        yield record, f"cached {repo}@{snapshot.name[:12]}"


def _error(record: Checkpoint) -> str:
    return f"{record.bound:.2g} {record.bound_kind}"


def _size(record: Checkpoint) -> str:
    return f"{record.size} B" if record.size < 1000 else f"{record.size / 1000:.0f} kB"


def _readable(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[_printable(cell) for cell in line] for line in ([head, *rows] if any(head) else rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
