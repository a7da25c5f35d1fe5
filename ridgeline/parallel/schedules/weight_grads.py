"""Where weight gradients go: into the waits of an order of forwards and input gradients, on a clock."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import attrs

from ridgeline.core.errors import PlanError
from ridgeline.parallel.actions import Action
from ridgeline.parallel.dataflow import Flow, flow_of, hop_times, visit
from ridgeline.parallel.schedule import Schedule, problem_at

PATIENCE = (0.0, 0.5, 1.0)
"""The share of a weight gradient that a wait must have room for; each is tried, and the fastest order kept."""


def fill_waits(
    schedule: Schedule,
    *,
    limit: int,
    stage_us: Mapping[str, Sequence[float]] | None = None,
    p2p_us: float | Sequence[float] = 0.0,
) -> Schedule:
    """Add the weight gradients to a schedule of forwards and input gradients.

    A rank runs one, the oldest first, where it would wait for an input; where a forward would be one activation too
    many; and what is left at its end.

    Args:
        schedule: Actions F and I alone.
        limit: Activations a rank may hold, one for each chunk of a microbatch, from F to W.
        stage_us: Times of F, I and W on every stage, for which the places are chosen; None takes all equal.
        p2p_us: Of transfers, as ``simulate`` takes it.

    Raises:
        PlanError: The order holds more than ``limit`` whatever its weight gradients do, or deadlocks.
    """
    times = stage_us or dict.fromkeys("FIW", [1.0] * schedule.num_stages)
    order = _order_of(schedule, times)
    hops = hop_times(p2p_us, schedule)
    _, chosen = min((_filled(schedule, order, limit, hops, patience) for patience in PATIENCE), key=lambda one: one[0])
    actions, weights = order.actions, order.weights
    ranks = tuple(tuple(actions[n] if n >= 0 else weights[~n] for n in numbers) for numbers in chosen)
    return attrs.evolve(schedule, ranks=ranks)


class _Order(NamedTuple):
    """Forwards and input gradients, numbered as in ``flow``.

    Attributes:
        forward: Whether each is a forward.
        us: The time of each.
        weights: The weight gradient that each makes due, of a forward with no meaning.
        weight_us: Its time.
    """

    flow: Flow
    actions: list[Action]
    forward: list[bool]
    us: list[float]
    weights: list[Action]
    weight_us: list[float]


def _order_of(schedule: Schedule, stage_us: Mapping[str, Sequence[float]]) -> _Order:
    actions = [action for row in schedule.ranks for action in row]
    return _Order(
        flow=flow_of(schedule),
        actions=actions,
        forward=[kind == "F" for _, kind, _ in actions],
        us=[stage_us[kind][stage] for stage, kind, _ in actions],
        weights=[Action(stage, "W", microbatch) for stage, _, microbatch in actions],
        weight_us=[stage_us["W"][stage] for stage, _, _ in actions],
    )


def _filled(
    schedule: Schedule, order: _Order, limit: int, hops: Sequence[float], patience: float
) -> tuple[float, list[list[int]]]:
    """When the last rank is done, and what each runs, a weight gradient as the ``~`` of what makes it due."""
    flow, _, forward, us, _, weight_us = order
    rank_of, first = flow.rank, flow.first
    chosen: list[list[int]] = [[] for _ in schedule.ranks]
    waiting: list[deque[int]] = [deque() for _ in schedule.ranks]
    held = [0] * schedule.pp

    def take(number: int, clock: float, arrival: float) -> float:
        rank = rank_of[number]
        row, queue = chosen[rank], waiting[rank]
        while clock < arrival and queue and clock + patience * weight_us[queue[0]] <= arrival:
            clock += weight_us[queue[0]]
            row.append(~queue.popleft())
            held[rank] -= 1
        if forward[number]:
            while held[rank] >= limit:
                if not queue:
                    rule = f"holds more than {limit} activations"
                    raise PlanError(problem_at(schedule, pp_rank=rank, index=number - first[rank], rule=rule))
                clock += weight_us[queue[0]]
                row.append(~queue.popleft())
                held[rank] -= 1
            held[rank] += 1
        else:
            queue.append(number)
        row.append(number)
        return (arrival if arrival > clock else clock) + us[number]

    end = visit(schedule, flow, hop_us=hops, take=take)
    done = 0.0
    for rank, queue in enumerate(waiting):
        chosen[rank] += [~number for number in queue]
        done = max(done, end[first[rank + 1] - 1] + sum(weight_us[number] for number in queue))
    return done, chosen
