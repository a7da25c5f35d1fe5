"""Where weight gradients go: into the waits of an order of forwards and input gradients, on a clock."""

from collections.abc import Mapping, Sequence

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
    times = stage_us or {kind: [1.0] * schedule.num_stages for kind in "FIW"}
    hops = hop_times(p2p_us, schedule)
    flow = flow_of(schedule)
    tried = [_filled(schedule, flow, limit, times, hops, patience) for patience in PATIENCE]
    _, ranks = min(tried, key=lambda one: one[0])
    return attrs.evolve(schedule, ranks=ranks)


def _filled(
    schedule: Schedule,
    flow: Flow,
    limit: int,
    stage_us: Mapping[str, Sequence[float]],
    hops: Sequence[float],
    patience: float,
) -> tuple[float, tuple[tuple[Action, ...], ...]]:
    """When the last rank is done, and what each runs."""
    weight_us, input_us, forward_us = stage_us["W"], stage_us["I"], stage_us["F"]
    actions = [action for row in schedule.ranks for action in row]
    chosen: list[list[Action]] = [[] for _ in schedule.ranks]
    waiting: list[list[Action]] = [[] for _ in schedule.ranks]
    filled, held = [0] * schedule.pp, [0] * schedule.pp

    def fill(rank: int, clock: float) -> float:
        weight = waiting[rank][filled[rank]]
        filled[rank] += 1
        held[rank] -= 1
        chosen[rank].append(weight)
        return clock + weight_us[weight.stage]

    def take(number: int, clock: float, arrival: float) -> float:
        rank, action = flow.rank[number], actions[number]
        stage, kind, microbatch = action
        queue = waiting[rank]
        while clock < arrival and filled[rank] < len(queue):
            if clock + patience * weight_us[queue[filled[rank]].stage] > arrival:
                break
            clock = fill(rank, clock)
        if kind == "F":
            while held[rank] >= limit:
                if filled[rank] == len(queue):
                    rule = f"holds more than {limit} activations"
                    raise PlanError(problem_at(schedule, pp_rank=rank, index=number - flow.first[rank], rule=rule))
                clock = fill(rank, clock)
            held[rank] += 1
        else:
            queue.append(Action(stage, "W", microbatch))
        chosen[rank].append(action)
        return max(clock, arrival) + (forward_us if kind == "F" else input_us)[stage]

    end = visit(schedule, flow, hop_us=hops, take=take)
    done = 0.0
    for rank, queue in enumerate(waiting):
        clock = end[flow.first[rank + 1] - 1]
        while filled[rank] < len(queue):
            clock = fill(rank, clock)
        done = max(done, clock)
    return done, tuple(map(tuple, chosen))
