"""What verbs print to: a terminal, a pipe or a file, for people or as JSON."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ridgeline.apps.files import write_whole

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 160
"""Columns where no terminal says how many there are: wide enough for every table."""


def open_console() -> "Console":
    """Standard output, as wide as its terminal."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=PIPE_WIDTH)


def write_json(data: Any) -> None:
    """Print plain data, indented."""
    from msgspec.json import encode, format

    sys.stdout.write(format(encode(data), indent=2).decode() + "\n")


def give(text: str, *, path: Path | None, option: str, replace: bool = True) -> None:
    """Print a text, or write it to a file, whole, and say so.

    Raises:
        SpecError: As of ``write_whole``.
    """
    if path is None:
        sys.stdout.write(text)
        return
    write_whole(path, text, option=option, replace=replace)
    sys.stdout.write(f"written to {path}\n")
