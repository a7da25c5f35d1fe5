"""The environment of a process that starts cold, as one that pip installed does."""

import contextlib
import os
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def compiled() -> Iterator[dict[str, str]]:
    """Variables under which a module is compiled once: pip compiles, whatever PYTHONDONTWRITEBYTECODE says here."""
    with tempfile.TemporaryDirectory() as folder:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        yield {**kept, "PYTHONPYCACHEPREFIX": folder}
