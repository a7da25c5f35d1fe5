"""Folders and files that appear under their names only when they are complete and on the disk."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ridgeline.checkpoint.record import RECORD
from ridgeline.checkpoint.steps import POINTER, REMOVED, REPLACED, WRITING, step_of
from ridgeline.core.errors import CheckpointError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_file(path: Path, data: bytes) -> None:
    """Write a file and flush it to the disk."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, whole."""
    temporary = path.with_name(f"{WRITING}{path.name}")
    write_file(temporary, data)
    temporary.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_folder(final: Path) -> Path:
    """Make the empty folder in which ``final`` is written; what an interrupted writer left there is gone."""
    temporary = final.with_name(WRITING + final.name)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    return temporary


def publish(temporary: Path, final: Path) -> None:
    """Give a complete folder its name, all its files flushed first; a folder that had the name is replaced."""
    for file in temporary.iterdir():
        flush(file)
    flush(temporary)
    replaced = final.with_name(REPLACED + final.name)
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    flush(final.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def publish_tree(temporary: Path, final: Path) -> None:
    """The same of a folder with folders in it, whose files are on the disk already, and of a name that is free."""
    for path in sorted(temporary.rglob("*"), reverse=True):
        flush(path)
    flush(temporary)
    temporary.rename(final)
    flush(final.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder; if interrupted, none of that name is left that could pass for complete."""
    removed = folder.with_name(REMOVED + folder.name)
    folder.rename(removed)
    shutil.rmtree(removed)


def clean(folder: Path) -> None:
    """Remove what interrupted saves left among a run's checkpoints, and put back what they were about to replace."""
    for path in folder.iterdir() if folder.is_dir() else ():
        prefix = next((prefix for prefix in (WRITING, REPLACED, REMOVED) if path.name.startswith(prefix)), None)
        if prefix is None or step_of(path.name.removeprefix(prefix)) is None:
            continue
        final = path.with_name(path.name.removeprefix(prefix))
        if prefix == REPLACED and not final.exists():
            path.rename(final)
        else:
            shutil.rmtree(path)


def saved_steps(folder: Path) -> dict[int, Path]:
    """Every complete checkpoint of a run, by step.

    One that was being replaced when its writer died still counts.
    """
    found: dict[int, Path] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        step = step_of(path.name.removeprefix(REPLACED))
        if step is not None and (path / RECORD).is_file() and not (step in found and path.name.startswith(REPLACED)):
            found[step] = path
    return found


def latest(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from: the one its pointer names, else the newest complete one, else None.

    Raises:
        CheckpointError: The folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"folder={folder}: is no folder; remove it, or set run.output elsewhere")
    steps = saved_steps(folder)
    with contextlib.suppress(FileNotFoundError):
        step = step_of((folder / POINTER).read_text(errors="replace").strip())
        if step in steps:
            return steps[step]
    return steps[max(steps)] if steps else None


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``final`` on leaving; on an error nothing of it is left.

    Raises:
        CheckpointError: ``final`` exists, or the disk is full, read-only or not ours to write.
    """
    if final.exists():
        raise CheckpointError(f"folder={final}: exists; remove it or name another")
    with disk_errors(final):
        temporary = begin_folder(final)
        try:
            yield temporary
            publish(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn what the operating system says of a disk into an error that names ``target`` and the way out."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(disk_sentence(error, target)) from error


def disk_sentence(error: OSError, target: Path) -> str:
    """What went wrong on the disk while ``target`` was written, and the way out."""
    if error.errno in _FULL:
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(_nearest_folder(target)).free
            return (
                f"folder={target}: no room to write it ({os.strerror(error.errno)}; {free / 1e6:.1f} MB are free); "
                "free some or write elsewhere; what was saved before is untouched"
            )
    return f"folder={target}: {error.strerror or error}: {error.filename or ''}".rstrip(": ")


def _nearest_folder(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
