"""A file that is written whole or not at all."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from ridgeline.core.errors import Problem, SpecError


def write_whole(path: Path, text: str, *, option: str, replace: bool = True) -> None:
    """Write a file under another name beside it, to the disk, and give it its own name only then.

    Whatever cuts the writing off, a full disk or a kill, the name keeps what it had: its old file, or none. What is no
    plain file, a terminal or a pipe such as ``/dev/stdout``, is written straight.

    Args:
        path: Where to; a symbolic link stays one, and what it points to is written.
        text: All of it, written as UTF-8.
        option: Who named the path, for the message: ``--output``.
        replace: Whether a file of this name may be replaced.

    Raises:
        SpecError: It exists and must not be replaced, is a folder, or cannot be written.
    """
    if not replace and os.path.lexists(path):
        raise _exists(path, option)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_text(text, encoding="utf-8")
        else:
            _write_beside(path.resolve(), text.encode(), os.replace if replace else os.link)
    except FileExistsError as error:
        raise _exists(path, option) from error
    except OSError as error:
        way_out = f"make the folder {path.parent} first" if isinstance(error, FileNotFoundError) else ""
        raise SpecError(Problem(option, str(path), f"cannot be written: {error.strerror}", way_out)) from error


def _write_beside(path: Path, data: bytes, give_name: Callable[[Path, Path], None]) -> None:
    beside = path.with_name(f".{os.urandom(6).hex()}.part")
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        give_name(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _exists(path: Path, option: str) -> SpecError:
    return SpecError(Problem(option, str(path), "exists already", "name another file, or remove it"))
