"""Recomputing as actions of its own: a schedule's forwards run again before their backwards need them, not within them.

A recompute needs no other rank, so it can run while a backward's input is still on its way.
"""

from bisect import insort
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise

import attrs

from ridgeline.core.errors import PlanError, Problem
from ridgeline.parallel.actions import Action
from ridgeline.parallel.dataflow import flow_of, hop_times, visit
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.simulate import held_during

Cell = tuple[int, int]
"""A stage and a microbatch."""


def recompute_in_advance(schedule: Schedule) -> Schedule:
    """Recompute every activation just before its backward, while the rank waits for the gradient.

    Where a backward follows its own forward, as on the last stage, nothing is dropped and nothing recomputed.

    Args:
        schedule: Without recomputes.

    Source:
        MindSpeed 028de58c, docs/features/recompute_independent_pipelining.md, ``--recompute-in-advance``.

    Example:
        >>> from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b
        >>> print(recompute_in_advance(one_f_one_b(pp=2, num_microbatches=2)))
        0: 0F0 0F1 0R0 0B0 0R1 0B1
        1: 1F0 1B0 1F1 1B1
    """
    at_once = [
        {after[::2] for before, after in pairwise(row) if before.kind == "F" and before[::2] == after[::2]}
        for row in schedule.ranks
    ]
    return _with_recomputes(
        schedule,
        [
            {(stage, microbatch) for stage, _, microbatch in row} - kept
            for row, kept in zip(schedule.ranks, at_once, strict=True)
        ],
    )


def recompute_in_bubble(
    schedule: Schedule,
    *,
    limit: int,
    stage_us: Mapping[str, Sequence[float]],
    p2p_us: float | Sequence[float] = 0.0,
) -> Schedule:
    """Keep at most ``limit`` activations: drop few of those in flight, and recompute these in waits as far as they go.

    Where a rank would hold more it drops the one whose backward is farthest. That is recomputed in a wait that has room
    for it, once the one before has had its backward and while the limit allows; else just before its own backward.

    Args:
        schedule: Without recomputes.
        limit: Activations of a chunk that a rank may hold.
        stage_us: Times of the schedule's actions and of R on every stage, as ``simulate`` takes them.
        p2p_us: Of transfers.

    Raises:
        PlanError: More than ``limit`` are in their backwards at a time.

    Source:
        MindSpeed 028de58c, docs/features/recompute_independent_pipelining.md, ``--recompute-in-bubble``, which keeps
        ``pp*vpp`` activations of interleaved 1F1B.
    """
    late = _with_recomputes(schedule, [_dropped(actions, limit) for actions in schedule.ranks])
    actions = [action for row in late.ranks for action in row]
    flow = flow_of(late)
    todo = [
        [(first + place, first + earliest) for place, earliest in _recomputes(row, limit)]
        for first, row in zip(flow.first, late.ranks, strict=False)
    ]
    pairs = {first + place for first, places in zip(flow.first, late.pairs, strict=False) for place in places}
    done = [0] * late.pp
    chosen: list[list[Action]] = [[] for _ in late.ranks]

    def take(number: int, clock: float, arrival: float) -> float:
        rank, action = flow.rank[number], actions[number]
        place, earliest = todo[rank][done[rank]] if done[rank] < len(todo[rank]) else (-1, number + 1)
        if action.kind == "R" and number != place:
            return clock  # it has run already
        if action.kind == "R":
            done[rank] += 1
        elif number >= earliest and number - 1 not in pairs:
            again = actions[place]
            if clock + stage_us["R"][again.stage] <= arrival:
                done[rank] += 1
                chosen[rank].append(again)
                clock += stage_us["R"][again.stage]
        chosen[rank].append(action)
        return max(clock, arrival) + stage_us[action.kind][action.stage]

    visit(late, flow, hop_us=hop_times(p2p_us, late), take=take)
    return _with_ranks(late, chosen)


def _dropped(actions: Sequence[Action], limit: int) -> set[Cell]:
    """The activations that a rank cannot keep if it is to hold at most ``limit``, those recomputed included."""
    backward = {action[::2]: place for place, action in enumerate(actions) if action.kind in "BI"}
    kept: list[tuple[int, Cell]] = []
    dropped: set[Cell] = set()
    again = 0
    for place, (stage, kind, microbatch) in enumerate(actions):
        cell = stage, microbatch
        if kind == "F":
            insort(kept, (backward[cell], cell))
        elif kind in "BI" and cell in dropped:
            again += 1
        while len(kept) + again > limit:
            if not kept or kept[-1][0] <= place:
                rule = f"is less than the {len(kept) + again} activations that a rank holds in its backwards"
                raise PlanError(Problem("limit", limit, rule, f"raise it to {len(kept) + again}"))
            dropped.add(kept.pop()[1])
        if kind in "BW" and cell in dropped:
            again -= 1
        elif kind in "BW":
            kept.remove((backward[cell], cell))
    return dropped


def _recomputes(actions: Sequence[Action], limit: int) -> Iterator[tuple[int, int]]:
    """Each recompute of a rank: its place, and the earliest that it may run at."""
    forward = {action[::2]: place for place, action in enumerate(actions) if action.kind == "F"}
    release = {action[::2]: place for place, action in enumerate(actions) if action.kind in "BW"}
    full = before = -1
    for place, (action, held) in enumerate(zip(actions, held_during(actions), strict=True)):
        if action.kind == "R":
            yield place, min(place, max(full, before, forward[action[::2]]) + 1)
            before = release[action[::2]]
        if held >= limit:
            full = place


def _with_recomputes(schedule: Schedule, dropped: Sequence[Collection[Cell]]) -> Schedule:
    """Each activation dropped is recomputed just before its backward, or the pair that holds it."""
    ranks: list[list[Action]] = []
    for pp_rank, (actions, cells) in enumerate(zip(schedule.ranks, dropped, strict=True)):
        places = schedule.pairs_of(pp_rank)
        row: list[Action] = []
        for place, (stage, kind, microbatch) in enumerate(actions):
            if kind in "BI" and (stage, microbatch) in cells:
                row.insert(len(row) - (place - 1 in places), Action(stage, "R", microbatch))
            row.append(actions[place])
        ranks.append(row)
    return _with_ranks(schedule, ranks)


def _with_ranks(schedule: Schedule, ranks: Sequence[Sequence[Action]]) -> Schedule:
    """Other actions, the pairs where they now are."""
    firsts = {schedule.ranks[rank][place] for rank, places in enumerate(schedule.pairs) for place in places}
    pairs = tuple(frozenset(place for place, action in enumerate(row) if action in firsts) for row in ranks)
    return attrs.evolve(schedule, ranks=tuple(map(tuple, ranks)), pairs=pairs if firsts else ())
