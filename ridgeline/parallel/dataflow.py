"""What each action of a schedule waits for, and the earliest time at which it can run.

Actions are numbered rank after rank, so that all of this is arithmetic on lists.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ridgeline.core.errors import PlanError
from ridgeline.parallel.schedule import Schedule, problem_at


class Flow(NamedTuple):
    """Where tensors flow between the actions of a schedule.

    Attributes:
        first: The number of each rank's first action; one more entry says how many actions there are.
        rank: For each action the pipeline rank that runs it.
        maker: For each action the one that makes its input; -1 for none.
        hop: For each action the boundary ``s``, between stages s and s+1, that its input crosses from rank to rank; -1
            when it crosses none.
    """

    first: list[int]
    rank: list[int]
    maker: list[int]
    hop: list[int]


def flow_of(schedule: Schedule) -> Flow:
    """Number the actions and find the maker of each input.

    A forward needs the same microbatch's forward of the stage before, a backward (``B`` or ``I``) the backward of the
    stage after. What stays within a stage needs no waiting, since its rank runs it in order.
    """
    size = schedule.num_microbatches
    forward = [-1] * (size * schedule.num_stages)
    backward = [-1] * (size * schedule.num_stages)
    first, rank, number = [0], [], 0
    for pp_rank, actions in enumerate(schedule.ranks):
        for stage, kind, microbatch in actions:
            if kind == "F":
                forward[stage * size + microbatch] = number
            elif kind == "B" or kind == "I":
                backward[stage * size + microbatch] = number
            number += 1
        first.append(number)
        rank.extend([pp_rank] * len(actions))
    maker, hop = [-1] * number, [-1] * number
    for makers, takers in ((forward, forward[size:]), (backward[size:], backward)):
        for cell, (source, taker) in enumerate(zip(makers, takers, strict=False)):
            if source >= 0 and taker >= 0:
                maker[taker] = source
                if rank[source] != rank[taker]:
                    hop[taker] = cell // size
    return Flow(first, rank, maker, hop)


def hop_times(p2p_us: float | Sequence[float], schedule: Schedule) -> Sequence[float]:
    """The time of a transfer over each boundary of stages, where one number may stand for all."""
    return [p2p_us] * (schedule.num_stages - 1) if isinstance(p2p_us, (int, float)) else p2p_us


def run(
    schedule: Schedule,
    flow: Flow,
    *,
    durations: Sequence[float],
    hop_us: Sequence[float],
    early: Mapping[int, float] | None = None,
) -> tuple[list[float], list[float]]:
    """Start and end of each action when every rank runs its own in order, each as soon as its input has arrived.

    Args:
        schedule: What is run.
        flow: ``flow_of(schedule)``.
        durations: Time of each action.
        hop_us: Time of a transfer over the boundary ``s``, between stages s and s+1, for each boundary.
        early: For some actions how long before the end of the one before they may begin.

    Raises:
        PlanError: A deadlock; the message shows where each rank is stuck.
    """
    start = [-1.0] * len(durations)
    if not early:
        return start, _run_in_order(schedule, flow, durations, hop_us, start)

    def take(number: int, clock: float, arrival: float) -> float:
        if number in early:
            clock -= early[number]
        start[number] = begin = arrival if arrival > clock else clock
        return begin + durations[number]

    return start, visit(schedule, flow, hop_us=hop_us, take=take)


def _run_in_order(
    schedule: Schedule, flow: Flow, durations: Sequence[float], hop_us: Sequence[float], start: list[float]
) -> list[float]:
    """As ``visit``, with what is done with an action written out: of a plan's loops the longest."""
    end = [-1.0] * len(durations)
    reached, clocks = flow.first[:-1], [0.0] * schedule.pp
    sleeping: dict[int, int] = {}
    awake = list(range(schedule.pp))
    makers, hops, hop_us = flow.maker, flow.hop, (*hop_us, 0.0)  # boundary -1 is none
    while awake:
        rank = awake.pop()
        clock, stop = clocks[rank], flow.first[rank + 1]
        for number in range(reached[rank], stop):
            source = makers[number]
            if source >= 0:
                arrival = end[source]
                if arrival < 0:
                    sleeping[source], stop = rank, number
                    break
                arrival += hop_us[hops[number]]
                if arrival > clock:
                    clock = arrival
            start[number] = clock
            end[number] = clock = clock + durations[number]
            if number in sleeping:
                awake.append(sleeping.pop(number))
        clocks[rank], reached[rank] = clock, stop
    _check_all_ran(schedule, flow, reached)
    return end


def visit(
    schedule: Schedule, flow: Flow, *, hop_us: Sequence[float], take: Callable[[int, float, float], float]
) -> list[float]:
    """Have every rank take its actions in order, each once it is known when its input arrives; the end of each.

    Args:
        schedule: What is run.
        flow: ``flow_of(schedule)``.
        hop_us: Time of a transfer over each boundary of stages.
        take: ``take(number, clock, arrival)`` gives the end of an action whose input arrives at ``arrival``, on a rank
            that is free from ``clock`` on.

    Raises:
        PlanError: A deadlock; the message shows where each rank is stuck.
    """
    end = [-1.0] * len(flow.maker)
    reached, clocks = flow.first[:-1], [0.0] * schedule.pp
    sleeping: dict[int, int] = {}
    awake = list(range(schedule.pp))
    while awake:
        rank = awake.pop()
        clock = clocks[rank]
        for number in range(reached[rank], flow.first[rank + 1]):
            source, arrival = flow.maker[number], 0.0
            if source >= 0:
                arrival = end[source]
                if arrival < 0:
                    sleeping[source] = rank
                    break
                if flow.hop[number] >= 0:
                    arrival += hop_us[flow.hop[number]]
            end[number] = clock = take(number, clock, arrival)
            reached[rank] = number + 1
            if number in sleeping:
                awake.append(sleeping.pop(number))
        clocks[rank] = clock
    _check_all_ran(schedule, flow, reached)
    return end


def _check_all_ran(schedule: Schedule, flow: Flow, reached: Sequence[int]) -> None:
    if stuck := [rank for rank, number in enumerate(reached) if number < flow.first[rank + 1]]:
        raise PlanError(
            problem_at(schedule, pp_rank=rank, index=reached[rank] - flow.first[rank], rule="never starts: a deadlock")
            for rank in stuck[:4]
        )


def receive_points(schedule: Schedule, flow: Flow) -> list[int]:
    """For each action that needs a transfer, the action of its rank before which to receive; -1 for the others.

    It is the first to start after the tensor was made, were all actions of one length. Received so early, transfers
    cannot deadlock even if each blocks both its ranks until it is through: the action after the sender's then waits for
    the one before the receiving point, and like all that any action waits for, that one starts earlier on this clock.

    Raises:
        PlanError: The schedule deadlocks however it sends and receives.
    """
    start, end = run(schedule, flow, durations=[1.0] * len(flow.maker), hop_us=[0.0] * (schedule.num_stages - 1))
    return [
        -1 if boundary < 0 else bisect_left(start, end[source], flow.first[rank], flow.first[rank + 1])
        for source, boundary, rank in zip(flow.maker, flow.hop, flow.rank, strict=True)
    ]
