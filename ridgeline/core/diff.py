"""How two specs differ, field by field."""

from collections.abc import Iterator
from typing import Any

from ridgeline.core.codec import unstructure
from ridgeline.core.frozen import frozen


@frozen
class Change:
    """One field that differs: ``path: left -> right``; None stands for a field that one side does not have."""

    path: str
    left: object
    right: object

    def __str__(self) -> str:
        return f"{self.path}: {spelled(self.left)} -> {spelled(self.right)}"


def diff(left: Any, right: Any) -> tuple[Change, ...]:
    """Every leaf of two specs that differs, in the order of their fields; of equal specs, none.

    Example:
        >>> from ridgeline.core.layout import Layout
        >>> for change in diff(Layout(tp=2), Layout(tp=4, stages=(3, 5))):
        ...     print(change)
        tp: 2 -> 4
        stages: - -> [3, 5]
    """
    ours, theirs = dict(_leaves(unstructure(left), "")), dict(_leaves(unstructure(right), ""))
    return tuple(
        Change(name, ours.get(name), theirs.get(name))
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    )


def _leaves(plain: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(plain, dict):
        for name, value in plain.items():
            yield from _leaves(value, f"{path}.{name}" if path else name)
    elif isinstance(plain, list) and any(isinstance(item, dict) for item in plain):
        for index, item in enumerate(plain):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, plain


def spelled(value: object) -> str:
    """A field's value as a change shows it."""
    return "-" if value is None else str(value)
