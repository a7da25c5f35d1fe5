"""The words of a pipeline schedule: ``2F0`` is the forward of microbatch 0 on stage 2."""

import re
from functools import partial
from itertools import repeat
from types import MappingProxyType
from typing import Literal, NamedTuple, cast

from ridgeline.core.errors import Problem, SpecError

Kind = Literal["F", "B", "I", "W", "R"]

KINDS = MappingProxyType(
    {"F": "forward", "B": "whole backward", "I": "input gradient", "W": "weight gradient", "R": "recompute"}
)
"""What each letter means. A backward is one ``B``, or an ``I`` with a ``W`` at any later time."""


class Action(NamedTuple):
    """What a pipeline rank does at one time. A named tuple, since a schedule holds tens of thousands."""

    stage: int
    kind: Kind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


def actions_of(stage: int, kind: Kind, num_microbatches: int) -> list[Action]:
    """Those of one kind of all microbatches on a stage, made in bulk.

    Example:
        >>> [*map(str, actions_of(2, "F", 3))]
        ['2F0', '2F1', '2F2']
    """
    return list(map(partial(tuple.__new__, Action), zip(repeat(stage), repeat(kind), range(num_microbatches))))


def parse_action(text: str) -> Action:
    """The action that prints so.

    Raises:
        SpecError: ``text`` is no action.

    Example:
        >>> parse_action("2F0")
        Action(stage=2, kind='F', microbatch=0)
    """
    match = re.fullmatch(r"([0-9]+)([A-Z])([0-9]+)", text)
    if match is None or match[2] not in KINDS:
        kinds = ", ".join(f"{kind} {meaning}" for kind, meaning in KINDS.items())
        raise SpecError(Problem("action", text, "must read stage, kind, microbatch, as '2F0'", f"kinds: {kinds}"))
    return Action(int(match[1]), cast(Kind, match[2]), int(match[3]))
