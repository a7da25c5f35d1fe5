"""Proof that a schedule is one: every action once and in its turn, and every rank comes to its end."""

import itertools
from collections.abc import Iterator
from types import MappingProxyType

from ridgeline.core.errors import PlanError, Problem
from ridgeline.parallel.dataflow import flow_of, receive_points
from ridgeline.parallel.schedule import Schedule, problem_at

DUE = MappingProxyType({"": "F", "F": "RBI", "R": "BI", "I": "W", "B": "", "W": ""})
"""The last kind that ran for a stage and microbatch -> the kinds of which one is due next; none when it is complete."""

SHOWN = 4
"""Problems reported at a time, since one misplaced action breaks hundreds of others."""


def check_schedule(schedule: Schedule, *, evaluation: bool = False) -> None:
    """Prove that a schedule runs, and computes every gradient once.

    * Each stage belongs to one rank.
    * For each stage and microbatch it runs F, perhaps R, then B, or I and later W: each once, in this order.
    * Every rank comes to its end; with the transfers of ``steps_of`` even if each keeps both its ranks waiting.

    Args:
        schedule: The schedule to prove.
        evaluation: Whether it should hold forwards alone.

    Raises:
        PlanError: It is not so; the message shows the actions around each offending one.
    """
    if problems := list(itertools.islice(_problems(schedule, evaluation), SHOWN)):
        raise PlanError(problems)
    receive_points(schedule, flow_of(schedule))


def _problems(schedule: Schedule, evaluation: bool) -> Iterator[Problem]:
    due = {**DUE, "F": ""} if evaluation else DUE
    owner: dict[int, int] = {}
    last: dict[tuple[int, int], str] = {}
    for pp_rank, actions in enumerate(schedule.ranks):
        for index, (stage, kind, microbatch) in enumerate(actions):
            rule = ""
            if not 0 <= stage < schedule.num_stages:
                rule = f"stage must lie in 0 .. {schedule.num_stages - 1}"
            elif not 0 <= microbatch < schedule.num_microbatches:
                rule = f"microbatch must lie in 0 .. {schedule.num_microbatches - 1}"
            elif owner.setdefault(stage, pp_rank) != pp_rank:
                rule = f"stage {stage} belongs to pp_rank={owner[stage]}"
            elif kind not in (wanted := due[last.get((stage, microbatch), "")]):
                rule = f"runs where {_any_of(stage, wanted, microbatch)} is due"
            else:
                last[stage, microbatch] = kind
            if rule:
                yield problem_at(schedule, pp_rank=pp_rank, index=index, rule=rule)
    cells = itertools.product(range(schedule.num_stages), range(schedule.num_microbatches))
    missing = [_any_of(s, due[last.get((s, m), "")], m) for s, m in cells if due[last.get((s, m), "")]]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        yield Problem("schedule", schedule.name, f"never runs {', '.join(missing[:SHOWN])}{more}")


def _any_of(stage: int, kinds: str, microbatch: int) -> str:
    return " or ".join(f"{stage}{kind}{microbatch}" for kind in kinds) or "nothing more"
