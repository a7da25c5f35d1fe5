"""Specs to plain data and back: JSON, TOML and YAML with an exact round trip, and a digest of what a spec says.

``structure`` reads plain data into a spec and reports every fault at once, each with its path. A member of a union
carries ``kind``. A field that may be None is None by default and left out when it is (TOML has no null), a trait at its
default too. msgspec parses text only.
"""

import os
import types
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import attrs
import msgspec

from ridgeline.core.errors import Problem, SpecError, nearest
from ridgeline.core.fields import field_problems, item_annotation, union_members
from ridgeline.core.frozen import frozen

Spec = TypeVar("Spec")
Plain = dict[str, Any]


def unstructure(spec: Any) -> Plain:
    """A spec as dicts, lists and leaves, in the order of its fields."""
    return {
        **({"kind": spec.kind} if hasattr(type(spec), "kind") else {}),
        **{
            field.name: _plain(value)
            for field in attrs.fields(type(spec))
            if (value := getattr(spec, field.name)) is not None
            and not ("quiet" in field.metadata and value == field.default)
        },
    }


def structure(plain: Any, cls: type[Spec], *, path: str = "") -> Spec:
    """Read plain data as a spec of class ``cls``; a spec that stands in it already stays as it is.

    Raises:
        SpecError: Every unknown, missing or wrong field below ``path``.
    """
    problems: list[Problem] = []
    spec = _structure_spec(plain, cls, path, problems)
    if problems:
        raise SpecError(problems)
    return spec


def dumps(spec: Any, *, format: str = "json") -> str:
    """A spec as text in one of ``FORMATS``."""
    return FORMATS[format].dump(unstructure(spec))


def loads(text: str, cls: type[Spec], *, format: str = "json", source: str = "text") -> Spec:
    """The spec that ``dumps`` wrote.

    Raises:
        SpecError: The text, which ``source`` names, is not of this format, or not such a spec.
    """
    return structure(parse(text, format=format, source=source), cls)


def parse(text: str, *, format: str, source: str = "text") -> Any:
    """Plain data out of text.

    Raises:
        SpecError: The text is not of this format; ``source`` names it.
    """
    try:
        return FORMATS[format].load(text)
    except (ValueError, msgspec.DecodeError) as error:  # yaml's and tomllib's errors are ValueErrors once wrapped
        raise SpecError(Problem("file", source, f"is not {format}: {error}")) from error


def format_of(path: str | os.PathLike[str]) -> str:
    """The format a file's name promises.

    Raises:
        SpecError: The suffix is none of ours.
    """
    suffix = os.path.splitext(path)[1].lower().removeprefix(".")
    suffix = "yaml" if suffix == "yml" else suffix
    if suffix not in FORMATS:
        raise SpecError(Problem("file", str(path), "must end in .toml, .yaml, .yml or .json"))
    return suffix


def digest(spec: Any) -> str:
    """sha256 of the canonical JSON: equal for equal specs, in every process and Python version."""
    import hashlib  # 4 ms that only a digest should cost

    return hashlib.sha256(msgspec.json.encode(unstructure(spec), order="sorted")).hexdigest()


def _plain(value: Any) -> Any:
    if attrs.has(type(value)):
        return unstructure(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _structure_spec(plain: Any, cls: type[Any], path: str, problems: list[Problem]) -> Any:
    if isinstance(plain, cls):
        return plain
    if not isinstance(plain, Mapping):
        problems.append(Problem(path or "job", plain, f"must be a table of the fields of {cls.__name__}"))
        return None
    fields = {field.name: field for field in attrs.fields(cls)}
    allowed = {*fields, "kind"} if hasattr(cls, "kind") else set(fields)
    faults = len(problems)
    for name in plain:
        if name not in allowed:
            problems.append(Problem(_join(path, str(name)), plain[name], "unknown field", nearest(str(name), fields)))
    values = {}
    for name, field in fields.items():
        if name in plain:
            values[name] = _structure_value(plain[name], field.type, _join(path, name), problems)
        elif field.default is attrs.NOTHING:
            problems.append(Problem(_join(path, name), None, "is required", _way_in(field.type)))
    if len(problems) > faults:
        problems.extend(_own_faults(cls, values, path, already=problems[faults:]))
        return None
    try:
        return cls(**values)
    except SpecError as error:
        problems.extend(problem.under(path) for problem in error.problems)
        return None


def _own_faults(cls: type[Any], values: Plain, path: str, *, already: list[Problem]) -> Iterator[Problem]:
    """Faults of the fields that did arrive, when some did not: fields at fault are left to those already reported."""
    at_fault = {problem.path.removeprefix(f"{path}.").split(".")[0].split("[")[0] for problem in already}
    fields = attrs.fields_dict(cls)
    if at_fault.isdisjoint(fields):  # unknown fields only: the known ones make a spec, with all its rules
        try:
            cls(**values)
        except SpecError as error:
            yield from (problem.under(path) for problem in error.problems)
        return
    for name, value in values.items():
        if name not in at_fault:
            converter: Any = fields[name].converter
            converted = converter.converter(value) if converter else value
            yield from (problem.under(path) for problem in field_problems(fields[name], converted))


def _way_in(annotation: Any) -> str:
    """What a missing field needs, where it is a table: the fields of it that have no default."""
    if not attrs.has(annotation):
        return ""
    needed = [field.name for field in attrs.fields(annotation) if field.default is attrs.NOTHING]
    return f"give a table with {', '.join(needed)}" if needed else "give a table"


def _structure_value(plain: Any, annotation: Any, path: str, problems: list[Problem]) -> Any:
    members = union_members(annotation)
    if plain is None and types.NoneType in members:
        return None
    specs = [member for member in members if attrs.has(member)]
    if specs:
        return _structure_member(plain, specs, path, problems)
    for member in members:
        if (item := item_annotation(member)) is not None and isinstance(plain, (list, tuple)):
            return tuple(_structure_value(value, item, f"{path}[{i}]", problems) for i, value in enumerate(plain))
        if member is float and isinstance(plain, str):  # YAML 1.1 reads 1e-5 as text
            return _number(plain)
    return plain


def _structure_member(plain: Any, specs: list[type[Any]], path: str, problems: list[Problem]) -> Any:
    if type(plain) in specs:
        return plain
    by_kind = {getattr(spec, "kind", None): spec for spec in specs}
    if None in by_kind:
        return _structure_spec(plain, specs[0], path, problems)
    kind = plain.get("kind") if isinstance(plain, Mapping) else None
    if kind is None and len(specs) == 1 and isinstance(plain, Mapping):
        kind = specs[0].kind
    if isinstance(kind, str) and kind in by_kind:
        return _structure_spec(plain, by_kind[kind], path, problems)
    known = [name for name in by_kind if name is not None]
    if kind is None:
        problems.append(Problem(path, plain, "must be a table with a kind", nearest(str(plain), known)))
    else:
        problems.append(Problem(_join(path, "kind"), kind, "unknown kind", nearest(str(kind), known)))
    return None


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


@frozen
class _Format:
    load: Callable[[str], Any]
    dump: Callable[[Plain], str]


def _load_json(text: str) -> Any:
    return msgspec.json.decode(text)


def _dump_json(plain: Plain) -> str:
    return msgspec.json.format(msgspec.json.encode(plain), indent=2).decode() + "\n"


def _dump_toml(plain: Plain) -> str:
    import tomli_w

    return tomli_w.dumps(plain)


def _load_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def _dump_yaml(plain: Plain) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes text that PyYAML would write plainly yet read back otherwise, such as U+0085."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"')

    Dumper.add_representer(str, text)
    return yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True)


FORMATS: Mapping[str, _Format] = MappingProxyType(
    {
        "json": _Format(_load_json, _dump_json),
        "toml": _Format(msgspec.toml.decode, _dump_toml),
        "yaml": _Format(_load_yaml, _dump_yaml),
    }
)
