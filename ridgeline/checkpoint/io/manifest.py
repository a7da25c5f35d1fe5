"""What a conversion wrote, tensor by tensor with checksums: in a journal while it runs, in ``conversion.json`` at last.

The journal is a line of JSON for each file that stands whole on the disk, behind a first line that says which
conversion this is. So a conversion that was killed goes on with the files that are not in it.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from ridgeline.checkpoint.io.folders import write_file
from ridgeline.checkpoint.io.safetensors import Stored
from ridgeline.core.errors import CheckpointError

MANIFEST = "conversion.json"
JOURNAL = ".journal"


@attrs.frozen
class WrittenFile:
    """A file that stands on the disk: its path within the folder, its size, and its tensors."""

    name: str
    bytes: int
    tensors: tuple[Stored, ...]


@attrs.frozen
class Manifest:
    """All that a conversion wrote.

    Attributes:
        conversion: Which one it was: equal when source, options and outcome are.
        source: Where it read, and what of it the model had no use for.
        files: What it wrote.
    """

    conversion: str
    source: str
    dropped: tuple[str, ...]
    files: tuple[WrittenFile, ...]


def digest_of(parts: Iterable[object], files: Iterable[Path]) -> str:
    """What tells one conversion from another: its options and its source's files, by size and time of change."""
    seen = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((*map(str, parts), *seen)).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """What a folder says of its conversion, None if nothing.

    Raises:
        CheckpointError: It is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        plain = json.loads(path.read_text())
        files = tuple(_file_of(plain_file) for plain_file in plain["files"])
        return Manifest(plain["conversion"], plain["source"], tuple(plain["dropped"]), files)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"file={path}: is damaged: {type(error).__name__}: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write what a conversion wrote."""
    write_file(folder / MANIFEST, (json.dumps(attrs.asdict(manifest), indent=1) + "\n").encode())


def begin_journal(folder: Path, conversion: str) -> list[WrittenFile]:
    """Start a journal, or go on with one of the same conversion: the files that are done."""
    path = folder / JOURNAL
    lines = path.read_text().splitlines() if path.is_file() else []
    if lines[:1] != [conversion]:
        write_file(path, f"{conversion}\n".encode())
        return []
    done = []
    for line in lines[1:]:
        try:
            done.append(_file_of(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            break  # killed while it wrote the line
    whole = [file for file in done if (folder / file.name).is_file()]
    lines = [conversion, *(json.dumps(attrs.asdict(file)) for file in whole)]
    write_file(path, ("\n".join(lines) + "\n").encode())
    return whole


def add_to_journal(folder: Path, file: WrittenFile) -> None:
    """Note a file that stands whole on the disk."""
    with (folder / JOURNAL).open("a") as stream:
        stream.write(json.dumps(attrs.asdict(file)) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _file_of(plain: dict[str, Any]) -> WrittenFile:
    return WrittenFile(plain["name"], plain["bytes"], tuple(_stored_of(tensor) for tensor in plain["tensors"]))


def _stored_of(plain: dict[str, Any]) -> Stored:
    return Stored(**{**plain, "span": tuple(plain["span"]) if plain["span"] else None})
