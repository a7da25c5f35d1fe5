"""What a conversion wrote, tensor by tensor with checksums: in a journal while it runs, in ``conversion.json`` at last.

The journal is a line of JSON for each file that stands whole on the disk, behind a first line that says which
conversion this is. So a conversion that was killed goes on with the files that are not in it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import attrs

from ridgeline.checkpoint.io.folders import write_file
from ridgeline.checkpoint.io.json_file import read_json
from ridgeline.checkpoint.io.safetensors import Stored
from ridgeline.core.errors import CheckpointError

MANIFEST = "conversion.json"
JOURNAL = ".journal"
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EBADF)
"""What a file system says that keeps no locks, as Lustre may; two conversions are then not told apart."""


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
    plain = read_json(path)
    try:
        files = tuple(_file_of(plain_file) for plain_file in plain["files"])
        return Manifest(plain["conversion"], plain["source"], tuple(plain["dropped"]), files)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"file={path}: is damaged: {type(error).__name__}: {error}; convert again") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write what a conversion wrote."""
    write_file(folder / MANIFEST, (json.dumps(attrs.asdict(manifest), indent=1) + "\n").encode())


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the journal of a folder that is being written, so that two conversions do not write into one.

    Raises:
        CheckpointError: Another one does, or what is there is no conversion's.
    """
    path = folder / JOURNAL
    if not path.is_file() and any(folder.iterdir()):
        raise CheckpointError(f"folder={folder}: is in the way, and no conversion made it; move or remove it")
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            rule = "another conversion is writing it; wait for its end, or write elsewhere"
            raise CheckpointError(f"folder={folder}: {rule}") from error
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        yield


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
    whole = [file for file in done if size_of(folder / file.name) == file.bytes]
    lines = [conversion, *(json.dumps(attrs.asdict(file)) for file in whole)]
    write_file(path, ("\n".join(lines) + "\n").encode())
    return whole


def add_to_journal(folder: Path, file: WrittenFile) -> None:
    """Note a file that stands whole on the disk."""
    with (folder / JOURNAL).open("a") as stream:
        stream.write(json.dumps(attrs.asdict(file)) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def size_of(path: Path) -> int | None:
    """The bytes of a file; None where there is none."""
    return path.stat().st_size if path.is_file() else None


def size_fault(folder: Path, file: WrittenFile) -> str | None:
    """What is wrong with the size of a file that should stand in a folder."""
    size = size_of(folder / file.name)
    if size == file.bytes:
        return None
    return f"{file.name}: " + ("is missing" if size is None else f"holds {size} bytes") + f", expected {file.bytes}"


def _file_of(plain: dict[str, Any]) -> WrittenFile:
    name = plain["name"]
    if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{name!r} is no file within the folder")
    return WrittenFile(name, _count(plain["bytes"]), tuple(_stored_of(tensor) for tensor in plain["tensors"]))


def _stored_of(plain: dict[str, Any]) -> Stored:
    numbers = {name: _count(plain[name]) for name in ("bytes", "start", "crc32")}
    span = None if plain["span"] is None else (_count(plain["span"][0]), _count(plain["span"][1]))
    return Stored(name=str(plain["name"]), **numbers, span=span)


def _count(number: object) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} counts nothing")
    return number
