"""Memory over time: what a rank holds at each action of a step and at its update, by component.

The peak of a plan is the highest of these points. A trace of the allocator is compared with ``after_bytes``, what is
left once an action is over, which no overlap and no temporary blurs.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ridgeline.parallel.activations import moments, stage_live
from ridgeline.parallel.held import plan_held
from ridgeline.parallel.memory import buffer_bytes
from ridgeline.parallel.states import states_of
from ridgeline.parallel.work import stage_work

if TYPE_CHECKING:
    from ridgeline.parallel.plan import Plan


class Point(NamedTuple):
    """Bytes of tensors on one rank.

    Attributes:
        at: The action, ``2F0``, or ``update``.
        params, grads, masters, moments, buffers: Held all the while.
        activations: What the microbatches in flight keep, this one among them.
        work: What the action, or the update, takes beyond that at its worst moment.
        after_bytes: Of all tensors, once it is over.
    """

    at: str
    params: int
    grads: int
    masters: int
    moments: int
    buffers: int
    activations: int
    work: int
    after_bytes: int

    @property
    def total_bytes(self) -> int:
        """At the worst moment."""
        return sum(self[1:8])


def memory_over_time(plan: "Plan", pp_rank: int, *, first: bool = False) -> tuple[Point, ...]:
    """Every action of a pipeline rank and its update, in order.

    Args:
        plan: Of the job.
        pp_rank: Whose actions.
        first: Of the first step, whose forwards and backwards run before Adam's moments exist.
    """
    return tuple(_points(plan, pp_rank, first=first))


def _points(plan: "Plan", pp_rank: int, *, first: bool) -> Iterator[Point]:
    held = plan_held(plan.job, mesh=plan.mesh, stages=plan.stages, shards=plan.shards)
    states = states_of(plan.job, mesh=plan.mesh, held=[held[stage] for stage in plan.stages.owned_by(pp_rank)])
    buffers = buffer_bytes(plan.job, pp_rank)
    adam = 0 if first else states.moments
    running = (states.params, states.grads, states.masters, adam, buffers)
    each = stage_live(plan.job, stage_work(plan.job, plan.stages))
    for moment in moments(plan.schedule.ranks[pp_rank], each, pairs=plan.schedule.pairs_of(pp_rank)):
        yield Point(str(moment.action), *running, moment.held, moment.work, sum(running) + moment.left)
    updating = (states.params, states.grads, states.masters, states.moments, buffers)
    yield Point("update", *updating, 0, states.main_grads + states.update, sum(updating) + states.main_grads)
