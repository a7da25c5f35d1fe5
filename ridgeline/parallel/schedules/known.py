"""Schedules by name."""

from types import MappingProxyType

from ridgeline.core.errors import PlanError, Problem, nearest
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.interleaved import interleaved_1f1b
from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b

SCHEDULES = MappingProxyType({"1f1b": one_f_one_b, "interleaved_1f1b": interleaved_1f1b})
"""Name -> generator; each takes ``pp, vpp, num_microbatches, microbatch_group_size``."""


def plan_schedule(
    name: str, *, pp: int, vpp: int, num_microbatches: int, microbatch_group_size: int | None = None
) -> Schedule:
    """The schedule of this name, for these numbers.

    Raises:
        PlanError: The name is unknown, or its schedule does not exist for these numbers.
    """
    if name not in SCHEDULES:
        raise PlanError(Problem("layout.schedule", name, "unknown", nearest(name, SCHEDULES)))
    return SCHEDULES[name](
        pp=pp, vpp=vpp, num_microbatches=num_microbatches, microbatch_group_size=microbatch_group_size
    )
