"""JSON that others wrote, read with suspicion: one object, no name twice, and no depth that would exhaust a reader."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ridgeline.core.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        CheckpointError: The file is missing, cannot be read, or holds no such object.
    """
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"file={path}: is missing") from error
    except OSError as error:
        raise CheckpointError(f"file={path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"file={path}: is damaged or cut short: {error}; fetch or write it again") from error


def parse_json(data: bytes) -> dict[str, Any]:
    """The object in some bytes.

    Raises:
        ValueError: They are no JSON, or no object, or an object in them says a name twice.
    """
    try:
        found = json.loads(data, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twice} stands in it twice")
    return found
