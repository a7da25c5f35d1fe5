"""What each action of a schedule waits for, and the earliest time at which it can run.

Actions are numbered rank after rank, so that all of this is arithmetic on lists.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from ridgeline.core.errors import PlanError
from ridgeline.parallel.schedule import Schedule, problem_at

Waits = Sequence[Sequence[tuple[int, float]]]
"""For each action, the actions that must end before it starts, and how long before."""


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


def run(schedule: Schedule, flow: Flow, waits: Waits, durations: Sequence[float]) -> tuple[list[float], list[float]]:
    """Start and end of each action when every rank runs its own in order, each as soon as all it waits for has ended.

    Raises:
        PlanError: A deadlock; the message shows where each rank is stuck.
    """
    start, end = [-1.0] * len(waits), [-1.0] * len(waits)
    reached, clock = flow.first[:-1], [0.0] * schedule.pp
    sleeping: dict[int, list[int]] = {}
    awake = list(range(schedule.pp))
    while awake:
        rank = awake.pop()
        number, time, stop = reached[rank], clock[rank], flow.first[rank + 1]
        while number < stop:
            for before, delay in waits[number]:
                done = end[before]
                if done < 0:
                    sleeping.setdefault(before, []).append(rank)
                    break
                if done + delay > time:
                    time = done + delay
            else:
                start[number] = time
                time += durations[number]
                end[number] = time
                if number in sleeping:
                    awake.extend(sleeping.pop(number))
                number += 1
                continue
            break
        reached[rank], clock[rank] = number, time
    if stuck := [rank for rank, number in enumerate(reached) if number < flow.first[rank + 1]]:
        places = [(rank, reached[rank] - flow.first[rank]) for rank in stuck[:4]]
        raise PlanError(problem_at(schedule, *place, rule="never starts: a deadlock") for place in places)
    return start, end


def overlapped_waits(flow: Flow, hop_us: Sequence[float]) -> Waits:
    """What each action waits for when transfers run beside the compute: its input, ``hop_us[s]`` after it was made."""
    return [
        () if source < 0 else ((source, hop_us[boundary] if boundary >= 0 else 0.0),)
        for source, boundary in zip(flow.maker, flow.hop, strict=True)
    ]


def blocking_waits(flow: Flow, received_before: Sequence[int], hop_us: Sequence[float]) -> Waits:
    """What each action waits for when transfers keep both their ranks from computing.

    Between two actions a rank sends what the first has made and receives all it is due, together; a transfer begins
    when both its ends have come to it, and the next action of either waits until it is over.
    """
    waits: list[list[tuple[int, float]]] = [[] for _ in flow.maker]
    for taker, source in enumerate(flow.maker):
        if source >= 0 and flow.hop[taker] < 0:
            waits[taker].append((source, 0.0))
        elif source >= 0:
            delay, receiver = hop_us[flow.hop[taker]], received_before[taker]
            ends = [(source, delay)]
            if receiver > flow.first[flow.rank[taker]]:
                ends.append((receiver - 1, delay))
            waits[receiver].extend(ends)
            if source + 1 < flow.first[flow.rank[source] + 1]:
                waits[source + 1].extend(ends)
    return waits


def receive_points(schedule: Schedule, flow: Flow) -> list[int]:
    """For each action that needs a transfer, the action of its rank before which to receive; -1 for the others.

    It is the first to start after the tensor was made, were all actions of one length. Receiving so early cannot
    deadlock even when transfers block: every wait then leads from an action to one that starts later on this clock.

    Raises:
        PlanError: The schedule deadlocks however it sends and receives.
    """
    start, end = run(schedule, flow, overlapped_waits(flow, [0.0] * schedule.num_stages), [1.0] * len(flow.maker))
    return [
        -1 if boundary < 0 else bisect_left(start, end[source], flow.first[rank], flow.first[rank + 1])
        for source, boundary, rank in zip(flow.maker, flow.hop, flow.rank, strict=True)
    ]
