"""``attrs.frozen`` for values: equality, hash and text are functions that all classes share, and no class has slots.

attrs compiles its own three for each class, and for slots makes each class twice. Ridgeline has about a hundred such
classes, so that doing without took a quarter off the time of a plan from a cold start (`tests/bench/plan_latency.py`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from attrs import frozen as frozen
else:

    def frozen(cls: type[Any] | None = None, **options: Any) -> type[Any] | Callable[[type[Any]], type[Any]]:
        """As ``attrs.frozen``."""
        if cls is None:
            return lambda cls: frozen(cls, **options)
        if options.get("eq", True):
            cls.__eq__, cls.__hash__ = _equals, _hash
        if "__repr__" not in vars(cls):
            cls.__repr__ = _text
        return attrs.frozen(cls, **{**options, "eq": False, "repr": False, "slots": False})


def _values(value: Any) -> tuple[Any, ...]:
    return tuple([getattr(value, field.name) for field in value.__attrs_attrs__])


def _equals(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash((self.__class__, _values(self)))


def _text(self: Any) -> str:
    fields = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in self.__attrs_attrs__)
    return f"{type(self).__name__}({fields})"
