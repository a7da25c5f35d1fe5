"""Fields of a spec that know their own rule, and the one check that reports every fault of a spec at once.

A spec's annotations are its first rule (``int``, ``float``, ``Literal[...]``, ``tuple[int, ...]``, another spec, a
union of specs); a bound is the second. ``check_spec`` is the ``__attrs_post_init__`` of every spec. A rule over two
fields of the same spec is a method ``_problems`` that yields ``Problem``.
"""

import functools
import math
import types
import typing
from collections.abc import Iterator
from typing import Any

import attrs

from ridgeline.core.errors import Problem, SpecError, nearest

LARGEST_INT = 2**63 - 1  # what every reader of JSON, TOML and YAML agrees on
LARGEST_FLOAT = 2**1023
UNION_TYPES = (typing.Union, types.UnionType)


def at_least(minimum: int, default: Any = attrs.NOTHING) -> Any:
    """An integer field, ``None`` allowed where its annotation says so."""
    return attrs.field(default=default, metadata={"minimum": minimum})


def degree() -> Any:
    """The size of a mesh axis: an integer >= 1, by default 1."""
    return at_least(1, default=1)


def real(
    default: Any = attrs.NOTHING,
    *,
    above: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A finite number; integers become floats, so that equal specs have equal text."""
    bounds = {"above": above, "minimum": minimum, "maximum": maximum}
    metadata = {name: bound for name, bound in bounds.items() if bound is not None}
    return attrs.field(default=default, converter=FLOAT, metadata=metadata)


def trait(
    default: Any, *, above: float | None = None, minimum: float | None = None, maximum: float | None = None
) -> Any:
    """A field that few specs set, left out of their text at its default, so that text outlives new traits."""
    bounds = {"above": above, "minimum": minimum, "maximum": maximum, "quiet": True}
    metadata = {name: bound for name, bound in bounds.items() if bound is not None}
    number = isinstance(default, float) or above is not None
    return attrs.field(default=default, converter=FLOAT if number else None, metadata=metadata)


def many(default: Any = ()) -> Any:
    """A tuple field that takes any list or tuple."""
    return attrs.field(default=default, converter=TUPLE)


def reals(default: tuple[float, ...]) -> Any:
    """A tuple of numbers."""
    return attrs.field(default=default, converter=FLOATS)


def check_spec(spec: Any) -> None:
    """Raise one ``SpecError`` with every fault of this spec's own fields."""
    problems = [
        problem for field in attrs.fields(type(spec)) for problem in field_problems(field, getattr(spec, field.name))
    ]
    if not problems and hasattr(spec, "_problems"):
        problems.extend(spec._problems())
    if problems:
        raise SpecError(problems)


def field_problems(field: Any, value: Any) -> Iterator[Problem]:
    """What is wrong with one field's value, by its annotation and its bounds."""
    rule = type_rule(value, field.type)
    if rule is not None:
        yield Problem(field.name, value, rule)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            yield Problem(field.name, value, "must be a finite number")
        if (minimum := field.metadata.get("minimum")) is not None and value < minimum:
            yield Problem(field.name, value, f"must be >= {minimum}")
        if (above := field.metadata.get("above")) is not None and value <= above:
            yield Problem(field.name, value, f"must be > {above}")
        if (maximum := field.metadata.get("maximum")) is not None and value > maximum:
            yield Problem(field.name, value, f"must be <= {maximum}")


@functools.cache
def union_members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation; a plain type is its own only one."""
    return typing.get_args(annotation) if typing.get_origin(annotation) in UNION_TYPES else (annotation,)


def type_rule(value: Any, annotation: Any) -> str | None:
    """The rule that ``value`` breaks as ``annotation``, in words, or None when it fits."""
    members = union_members(annotation)
    if any(_fits(value, member) for member in members):
        return None
    if type(value) is int and abs(value) > LARGEST_INT:
        return "must fit in 64 bits"
    if len(members) == 2 and types.NoneType in members:
        members = tuple(member for member in members if member is not types.NoneType)
    choices = tuple(choice for member in members for choice in literal_choices(member))
    if choices:
        return (
            f"unknown; {nearest(value, choices)}"
            if isinstance(value, str)
            else f"must be one of {', '.join(map(str, choices))}"
        )
    return "must be " + " or ".join(map(_type_name, members))


@functools.cache
def literal_choices(annotation: Any) -> tuple[Any, ...]:
    """The values a ``Literal`` allows, in order; none for any other type."""
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


@functools.cache
def item_annotation(annotation: Any) -> Any:
    """What a ``tuple[X, ...]`` or ``list[X]`` holds; None for any other type."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) in (tuple, list) else None


def _to_float(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST_FLOAT:
        return float(value) + 0.0  # -0.0 becomes 0.0: they compare equal, so they must read equal
    return value


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _to_floats(value: Any) -> Any:
    return tuple(map(_to_float, value)) if isinstance(value, (list, tuple)) else value


def _fits(value: Any, member: Any) -> bool:
    if member is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INT
    if member is str:
        return isinstance(value, str) and (value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value))
    if member is float:
        return isinstance(value, float)
    if member is None or member is types.NoneType:
        return value is None
    if choices := literal_choices(member):
        return value in choices and not isinstance(value, bool)
    if (item := item_annotation(member)) is not None:
        return isinstance(value, typing.get_origin(member)) and all(type_rule(part, item) is None for part in value)
    return isinstance(value, member)


def _type_name(member: Any) -> str:
    if (item := item_annotation(member)) is not None:
        return "a list, each " + " or ".join(_type_name(part).removeprefix("a list, ") for part in union_members(item))
    if choices := literal_choices(member):
        return "one of " + ", ".join(map(str, choices))
    names: dict[Any, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return names.get(member) or member.__name__


# attrs reads the signature of a converter once for each of these, and once a field of a bare function.
FLOAT, TUPLE, FLOATS = map(attrs.Converter, (_to_float, _to_tuple, _to_floats))
