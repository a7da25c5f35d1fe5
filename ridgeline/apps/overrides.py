"""Options of the command line as changes to a job's plain data.

Any field of a job is an option by its dotted path, ``--layout.tp 8``, and the commonest have a short name, ``--tp 8``.
A value is read as its field's annotation asks; one that does not fit stays text, and the job's own check says what it
must be. ``--layout.sp`` alone means true.
"""

import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs
import msgspec

from ridgeline.core.codec import Plain
from ridgeline.core.errors import Problem, SpecError, nearest
from ridgeline.core.fields import literal_choices, union_members
from ridgeline.core.frozen import frozen
from ridgeline.core.job import Job
from ridgeline.models.jobs import merged

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "tp": "layout.tp",
        "pp": "layout.pp",
        "vpp": "layout.vpp",
        "cp": "layout.cp",
        "ep": "layout.ep",
        "etp": "layout.etp",
        "sp": "layout.sp",
        "mbs": "batch.mbs",
        "gbs": "batch.gbs",
        "seq_len": "batch.seq_len",
        "lr": "optimizer.lr",
        "nodes": "cluster.nodes",
        "hf": "init.hf",
        "from_hf": "init.hf",
        "tokenizer": "data.tokenizer",
        "steps": "run.steps",
        "output": "run.output",
        "export_hf_every": "run.export_hf_every",
        "seed": "run.seed",
    }
)
"""Short options and the field each stands for."""


@frozen
class Override:
    """One option: the path of a field, and its value as text (``True`` for a bare flag)."""

    path: tuple[str, ...]
    text: str | bool


def parse_overrides(tokens: Sequence[str]) -> tuple[Override, ...]:
    """Read raw tokens as overrides.

    Raises:
        SpecError: Every token that is no option of a job.

    Example:
        >>> parse_overrides(["--tp", "8", "--layout.sp", "--seq-len=2048"])
        (Override(path=('layout', 'tp'), text='8'), Override(path=('layout', 'sp'), text=True),
        Override(path=('batch', 'seq_len'), text='2048'))
    """
    problems: list[Problem] = []
    overrides = []
    for name, text in _pairs(tokens):
        if not name:
            problems.append(Problem("option", text, "is no option", "write options as --FIELD VALUE"))
            continue
        path = ALIASES.get(name, name).split(".")
        if path[0] not in attrs.fields_dict(Job):
            known = {alias.replace("_", "-") for alias in ALIASES} | set(attrs.fields_dict(Job))
            problems.append(Problem(f"--{name}", text, "unknown option", nearest(name, known)))
        overrides.append(Override(tuple(path), text))
    if problems:
        raise SpecError(problems)
    return tuple(overrides)


def apply_overrides(raw: Mapping[str, Any], overrides: Iterable[Override]) -> Plain:
    """Plain data with each override in its place; a whole table (``--cluster cpu``) goes before its fields.

    Example:
        >>> apply_overrides({"cluster": "cpu"}, parse_overrides(["--nodes", "2", "--layout.stages", "3,5"]))
        {'cluster': {'preset': 'cpu', 'nodes': 2}, 'layout': {'stages': [3, 5]}}

    Raises:
        SpecError: Every value that looks like TOML and is none.
    """
    plain = dict(raw)
    problems: list[Problem] = []
    for override in sorted(overrides, key=lambda override: len(override.path)):
        try:
            plain = _replaced(plain, override.path, override.text, Job)
        except ValueError as error:
            problems.append(Problem(".".join(override.path), override.text, str(error)))
    if problems:
        raise SpecError(problems)
    return plain


def _pairs(tokens: Sequence[str]) -> Iterator[tuple[str, str | bool]]:
    """Option names, with underscores, and their values; a value without an option has the name ''."""
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or token == "--":
            yield "", token
            continue
        name, equals, text = token[2:].partition("=")
        if equals:
            value: str | bool = text
        else:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else True
        yield name.replace("-", "_"), value


def _replaced(plain: Any, path: tuple[str, ...], text: str | bool, annotation: Any) -> Any:
    """Plain data with the value at a path replaced, tables made on the way."""
    if not path:
        return read_value(text, annotation)
    table = {"preset": plain} if isinstance(plain, str) else dict(plain) if isinstance(plain, Mapping) else {}
    name, *rest = path
    value = _replaced(table.get(name), tuple(rest), text, _field_annotation(annotation, name, table.get("kind")))
    return merged(table, {name: value}) if isinstance(value, Mapping) else {**table, name: value}


def _field_annotation(annotation: Any, name: str, kind: object) -> Any:
    """The annotation of a field of one of these specs, of the one of this kind first; None where none has it."""
    specs = [member for member in union_members(annotation) if attrs.has(member)]
    for spec in sorted(specs, key=lambda spec: getattr(spec, "kind", None) != kind):
        if name in attrs.fields_dict(spec):
            return attrs.fields_dict(spec)[name].type
    return str


def read_value(text: str | bool, annotation: Any) -> Any:
    """Text as a value of an annotation, or unchanged where it is none.

    ``none`` leaves an optional field empty, ``a,b`` is a list, a word names a kind, and ``[...]`` or ``{...}`` is TOML.

    Raises:
        ValueError: Text that looks like TOML is none.

    Example:
        >>> read_value("8", int), read_value("1e-4", float), read_value("3,5", tuple[int, ...])
        (8, 0.0001, [3, 5])
    """
    members = union_members(annotation)
    if text is True:
        return True if bool in members else ""
    assert isinstance(text, str)
    if types.NoneType in members and text.lower() == "none":
        return None
    if text[:1] in ("[", "{") and str not in members:
        try:
            return msgspec.toml.decode(f"value = {text}")["value"]
        except msgspec.DecodeError as error:
            raise ValueError(f"is not TOML: {error}") from error
    for member in members:
        value = _read_member(text, member)
        if value is not None:
            return value
    return text


def _read_member(text: str, member: Any) -> Any:
    """The value as this one type, or None."""
    if typing.get_origin(member) is tuple:
        item = typing.get_args(member)[0]
        names = [part.strip() for part in text.split(",") if part.strip()]
        return names if attrs.has(item) else [read_value(name, item) for name in names]
    if attrs.has(member):
        return {"kind": text} if hasattr(member, "kind") else None
    if literal_choices(member):
        return text if text in literal_choices(member) else None
    if member is bool:
        return {"true": True, "false": False}.get(text.lower())
    if member in (int, float):
        try:
            return member(text)
        except ValueError:
            return None
    return None
