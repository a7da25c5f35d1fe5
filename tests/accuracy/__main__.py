"""`python -m tests.accuracy [PART ...]`: compare plans with published measurements and write docs/accuracy.md."""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"
PARTS: Mapping[str, str] = MappingProxyType(
    {
        "memory": "tests.accuracy.memory_page",
        "activations": "tests.accuracy.activations",
        "schedules": "tests.accuracy.schedules",
        "time": "tests.accuracy.time_page",
        "traces": "tests.accuracy.traces",
    }
)
"""A module for each part; its ``section()`` gives the lines of Markdown below the part's heading."""

HEAD = """# How far plans lie from measurements

Written by `python -m tests.accuracy` from `tests/accuracy/data`. An error is plan over measurement, less one.
"""


def main(names: list[str]) -> int:
    """Print the parts of these names, or all, and put them in their place on the page."""
    if unknown := [name for name in names if name not in PARTS]:
        sys.stderr.write(f"part={unknown[0]!r}: unknown; known: {', '.join(PARTS)}\n")
        return 2
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else HEAD
    for name in names or PARTS:
        section = "\n".join(import_module(PARTS[name]).section())
        sys.stdout.write(section + "\n")
        text = replaced(text, name, section)
    PAGE.write_text(text, encoding="utf-8")
    return 0


def replaced(text: str, name: str, section: str) -> str:
    """The page with one part replaced, or put at its end."""
    begin, end = f"<!-- {name} begins -->", f"<!-- {name} ends -->"
    part = f"{begin}\n{section}\n{end}"
    if begin not in text:
        return f"{text.rstrip()}\n\n{part}\n"
    before, _, rest = text.partition(begin)
    return before + part + rest.partition(end)[2]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
