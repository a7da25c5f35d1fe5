"""What verbs print to: a terminal or a pipe, for people or as JSON."""

import sys
from typing import TYPE_CHECKING, Any

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
