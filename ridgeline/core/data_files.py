"""JSON files that lie in a folder beside a module.

``pathlib`` and ``importlib.resources`` would do as well, and cost a plan from a cold start 4 ms and more.
"""

import os
from typing import Any

import msgspec


def data_names(module_file: str, folder: str) -> tuple[str, ...]:
    """The names of the files, without ``.json``, sorted."""
    entries = os.listdir(os.path.join(os.path.dirname(module_file), folder))
    return tuple(sorted(entry.removesuffix(".json") for entry in entries if entry.endswith(".json")))


def data_bytes(module_file: str, folder: str, name: str) -> bytes:
    """A file as it lies."""
    with open(os.path.join(os.path.dirname(module_file), folder, f"{name}.json"), "rb") as file:
        return file.read()


def read_data(module_file: str, folder: str, name: str) -> Any:
    """A file's value."""
    return msgspec.json.decode(data_bytes(module_file, folder, name))
