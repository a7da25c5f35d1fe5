"""Proof that a schedule is one: every action once and in its turn, and every rank comes to its end."""

import itertools
from collections.abc import Iterator, Sequence
from types import MappingProxyType

from ridgeline.core.errors import PlanError, Problem
from ridgeline.parallel.dataflow import flow_of, receive_points
from ridgeline.parallel.schedule import Schedule, problem_at
from ridgeline.parallel.simulate import held_during

DUE = MappingProxyType({"": "F", "F": "RBI", "R": "BI", "I": "W", "B": "", "W": ""})
"""The last kind that ran for a stage and microbatch -> the kinds of which one is due next; none when it is complete."""

SHOWN = 4
"""Problems reported at a time, since one misplaced action breaks hundreds of others."""


def check_schedule(schedule: Schedule, *, evaluation: bool = False, limit: int | Sequence[int] | None = None) -> None:
    """Prove that a schedule runs, and computes every gradient once.

    * Each stage belongs to one rank.
    * For each stage and microbatch it runs F, perhaps R, then B, or I and later W: each once, in this order.
    * The slices of a microbatch go forward in order, and backward from the last to the first.
    * A pair is a forward and a backward of different cells.
    * No rank holds more activations than ``limit``.
    * Every rank comes to its end; with the transfers of ``steps_of`` even if each keeps both its ranks waiting. Those
      are sent and received in one order between any two ranks.

    Args:
        schedule: The schedule to prove.
        evaluation: Whether it should hold forwards alone.
        limit: Activations of a chunk that any rank, or each, may hold, as ``peak_in_flight`` counts them.

    Raises:
        PlanError: It is not so; the message shows the actions around each offending one.
    """
    if problems := list(itertools.islice(_problems(schedule, evaluation), SHOWN)):
        raise PlanError(problems)
    flow = flow_of(schedule)
    receive_points(schedule, flow)
    if problems := [*_order_problems(schedule), *_limit_problems(schedule, limit)]:
        raise PlanError(problems[:SHOWN])


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


def _order_problems(schedule: Schedule) -> Iterator[Problem]:
    """Of slices and of pairs."""
    if schedule.num_microbatches % schedule.slices:
        rule = f"must be a multiple of slices={schedule.slices}"
        yield Problem("schedule.num_microbatches", schedule.num_microbatches, rule)
    for pp_rank, actions in enumerate(schedule.ranks):
        done: dict[tuple[int, int, bool], int] = {}
        for index, (stage, kind, number) in enumerate(actions):
            if schedule.slices == 1 or kind in "WR":
                continue
            microbatch, part = divmod(number, schedule.slices)
            turn = part if kind == "F" else schedule.slices - 1 - part
            cell = stage, microbatch, kind == "F"
            if turn != done.get(cell, 0):
                rule = f"is out of turn among the {schedule.slices} slices of its sequence"
                yield problem_at(schedule, pp_rank=pp_rank, index=index, rule=rule)
            done[cell] = turn + 1
        for index in sorted(schedule.pairs_of(pp_rank)):
            two = actions[index : index + 2]
            kinds = "".join(action.kind for action in two)
            if kinds not in ("FB", "FI") or two[0][::2] == two[1][::2]:
                rule = "pairs with the next, which is no backward of another stage or microbatch after a forward"
                yield problem_at(schedule, pp_rank=pp_rank, index=min(index, len(actions) - 1), rule=rule)


def _limit_problems(schedule: Schedule, limit: int | Sequence[int] | None) -> Iterator[Problem]:
    """The first action of each rank that holds too much."""
    limits = limit if isinstance(limit, Sequence) else [limit] * schedule.pp
    for pp_rank, (actions, most) in enumerate(zip(schedule.ranks, limits, strict=True)):
        for index, held in enumerate(held_during(actions)):
            if most is not None and held > most:
                rule = f"holds {held} activations, more than {most}"
                yield problem_at(schedule, pp_rank=pp_rank, index=index, rule=rule)
                break


def _any_of(stage: int, kinds: str, microbatch: int) -> str:
    return " or ".join(f"{stage}{kind}{microbatch}" for kind in kinds) or "nothing more"
