"""The arguments of a launch: which flags are given with which values, read by type, with the fate of each."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from ridgeline.core.codec import Plain
from ridgeline.core.errors import Problem
from ridgeline.core.frozen import frozen
from ridgeline.models.scripts.flags import FLAGS, Fate

Number = TypeVar("Number", int, float)


@frozen
class Entry:
    """The fate of one flag of a script."""

    flag: str
    value: str
    fate: Fate
    note: str

    def __str__(self) -> str:
        return f"{f'{self.flag} {self.value}'.strip()}: {self.note}"


def read_given(arguments: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[Entry], list[Problem]]:
    """Flags with their values, their fates by the table, and faults of form."""
    groups: list[tuple[str, list[str]]] = []
    entries: list[Entry] = []
    for word in arguments:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            groups.append((name.replace("_", "-"), [value] if equals else []))
        elif word.startswith("$") and (not groups or groups[-1][1] or _takes(groups[-1][0]) == "nothing"):
            entries.append(Entry(word, "", "not understood", "the script does not say what it holds; taken as nothing"))
        elif groups:
            groups[-1][1].append(word)
        else:
            entries.append(Entry(word, "", "not understood", "stands before the first flag"))
    given: dict[str, tuple[str, ...]] = {}
    problems: list[Problem] = []
    for spelled, values in groups:
        name, text = _full_name(spelled), " ".join(values)
        flag = FLAGS.get(name)
        if flag is None:
            entries.append(Entry(f"--{name}", text, "not understood", _unknown(name)))
            continue
        if flag.takes == "nothing" and values:
            problems.append(Problem(f"--{name}", text, "takes no value"))
        if flag.takes == "one" and len(values) != 1:
            problems.append(Problem(f"--{name}", text, "takes one value"))
            continue
        if name in given and given[name] != tuple(values):  # argparse lets the last one count
            before = next(i for i, entry in enumerate(entries) if entry.flag == f"--{name}" and entry.fate == flag.fate)
            entries[before] = Entry(f"--{name}", entries[before].value, "no effect", f"--{name} {text} follows it")
        given[name] = tuple(values)
        entries.append(Entry(f"--{name}", text, flag.fate, flag.note))
    return given, entries, problems


def _unknown(name: str) -> str:
    near = get_close_matches(name, FLAGS, n=1, cutoff=0.8)
    return "no flag that Ridgeline knows" + (f"; did the script mean --{near[0]}?" if near else "")


def _full_name(name: str) -> str:
    """The flag of which this is the only beginning, as argparse reads it."""
    whole = [known for known in FLAGS if known.startswith(name)]
    return whole[0] if name not in FLAGS and len(whole) == 1 else name


def _takes(name: str) -> str:
    flag = FLAGS.get(_full_name(name))
    return flag.takes if flag else "many"


class Reader:
    """Values of flags by type; faults are collected, and fates that depend on the value noted."""

    def __init__(self, given: dict[str, tuple[str, ...]], problems: list[Problem]) -> None:
        self.given, self.problems = given, problems
        self.fates: dict[str, dict[str, Any]] = {}

    def has(self, name: str) -> bool:
        return name in self.given

    def text(self, name: str, default: str = "") -> str:
        return " ".join(self.given[name]) if self.given.get(name) else default

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1) -> int | None:
        value = self._number(name, int, default)
        if name in self.given and value is not None and value < minimum:
            self.problems.append(Problem(f"--{name}", value, f"must be >= {minimum}"))
            return default
        return value

    def real(self, name: str, default: float | None = None) -> float | None:
        return self._number(name, float, default)

    def integers(self, name: str) -> list[int]:
        try:
            return [int(word) for word in self.text(name).split(",") if word]
        except ValueError:
            self.problems.append(Problem(f"--{name}", self.text(name), "must be integers with commas between"))
            return []

    def choice(self, name: str, known: Any, default: str) -> str:
        """The value if it is known; else the default, told as not expressible."""
        value = self.text(name, default)
        if value in known:
            return value
        self.lost(name, f"{value} has no word in a job; {default} stands in its place")
        return default

    def lost(self, name: str, note: str, fate: Fate = "not expressible") -> None:
        self.fates[name] = {"fate": fate, "note": note}

    def fault(self, name: str, rule: str, way_out: str = "") -> None:
        value = self.text(name) or (True if self.has(name) else None)
        self.problems.append(Problem(f"--{name}", value, rule, way_out))

    def _number(self, name: str, kind: type[Number], default: Number | None) -> Number | None:
        if name not in self.given:
            return default
        text = self.text(name)
        try:
            value = kind(text)
            if not math.isfinite(value):
                raise ValueError(text)
            return value
        except ValueError:
            unset = "the script does not say it; " if "$" in text else ""
            rule = f"{unset}must be {'an integer' if kind is int else 'a number'}"
            self.problems.append(Problem(f"--{name}", text, rule, "give it with --set NAME=VALUE" if unset else ""))
            return default


def without_none(table: Plain) -> Plain:
    """The table without its entries that hold None."""
    return {name: value for name, value in table.items() if value is not None}
