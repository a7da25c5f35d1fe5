"""Forwards together with backwards, in schedules that alternate the two."""

from itertools import pairwise

import attrs

from ridgeline.parallel.actions import Action
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.one_f_one_b import alternate


def paired(schedule: Schedule) -> Schedule:
    """Let each forward run together with the backward that follows it.

    Each rank runs one more forward first, so that no pair holds the forward and the backward of one microbatch, and
    holds one more activation. A schedule with pairs keeps those.

    Args:
        schedule: 1F1B, interleaved 1F1B, or one with pairs.

    Source:
        NVIDIA/Megatron-LM core_v0.16.1, megatron/core/pipeline_parallel/schedules.py, ``get_pp_rank_microbatches`` with
        ``overlap_moe_expert_parallel_comm``.

    Example:
        >>> from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b
        >>> print(paired(one_f_one_b(pp=2, num_microbatches=4)))
        0: 0F0 0F1     0F2+0B0 0F3+0B1 0B2 0B3
        1: 1F0 1F1+1B0 1F2+1B1 1F3+1B2 1B3
    """
    if schedule.pairs:
        return schedule
    ranks = tuple(map(_one_more, schedule.ranks))
    return attrs.evolve(schedule, ranks=ranks, pairs=tuple(map(_places, ranks)))


def _one_more(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    forwards = [action for action in actions if action.kind == "F"]
    backwards = [action for action in actions if action.kind == "B"]
    return alternate(forwards, backwards, warmup=actions.index(backwards[0]))


def _places(actions: tuple[Action, ...]) -> frozenset[int]:
    return frozenset(
        place
        for place, (one, two) in enumerate(pairwise(actions))
        if one.kind == "F" and two.kind == "B" and one[::2] != two[::2]
    )
