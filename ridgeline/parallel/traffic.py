"""What each pipeline rank sends and receives between its actions, in an order that cannot deadlock."""

from collections import defaultdict
from typing import NamedTuple

from ridgeline.parallel.actions import Action
from ridgeline.parallel.dataflow import flow_of, receive_points
from ridgeline.parallel.schedule import Schedule


class Step(NamedTuple):
    """One action of a rank, with the transfers about it.

    Attributes:
        receives: Before it, in this order: actions of other ranks whose output arrives, some for later use.
        action: What the rank computes.
        send_to: After it: the pipeline rank that needs its output; None when none other does.
    """

    receives: tuple[Action, ...]
    action: Action
    send_to: int | None


def steps_of(schedule: Schedule) -> tuple[tuple[Step, ...], ...]:
    """For each pipeline rank its actions with what it sends and receives.

    A forward passes its activation to the next stage, a backward (``B`` or ``I``) its input gradient to the previous.
    Between two actions a rank posts its send and its receives together, and may wait for all of them. What one rank
    sends to another is received in the order in which it is sent.

    Raises:
        PlanError: The schedule deadlocks.

    Example:
        >>> from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b
        >>> for receives, action, send_to in steps_of(one_f_one_b(pp=2, num_microbatches=1))[1]:
        ...     print(*receives, "->", action, "->", send_to)
        0F0 -> 1F0 -> None
        -> 1B0 -> 0
    """
    flow = flow_of(schedule)
    actions = [action for row in schedule.ranks for action in row]
    receives: dict[int, list[int]] = defaultdict(list)
    send_to: dict[int, int] = {}
    for taker, point in enumerate(receive_points(schedule, flow)):
        if point >= 0:
            receives[point].append(flow.maker[taker])
            send_to[flow.maker[taker]] = flow.rank[taker]
    return tuple(
        tuple(
            Step(tuple(actions[maker] for maker in sorted(receives[number])), actions[number], send_to.get(number))
            for number in range(first, first + len(row))
        )
        for first, row in zip(flow.first, schedule.ranks, strict=False)
    )
