"""A trace beside its plan: what agrees, what differs, and by how much."""

import attrs
import pytest

from ridgeline.parallel.mesh import group_of
from ridgeline.parallel.over_time import memory_over_time
from ridgeline.parallel.plan import Plan, plan
from ridgeline.parallel.traced import Trace, TracedAction, TracedCollective, compare
from tests.parallel.examples import MOE, job_of

RANK = 5


@pytest.fixture(scope="module")
def planned() -> Plan:
    return plan(
        job_of(MOE, layout__tp=2, layout__sp=True, layout__pp=2, layout__ep=2, memory__distributed_optimizer=True)
    )


def as_planned(planned: Plan) -> Trace:
    """What a rank would do that does just what was planned."""
    points = memory_over_time(planned, 1)
    peak = max(points, key=lambda point: point.total_bytes)
    parts = ("params", "grads", "masters", "moments", "buffers", "activations", "work")
    return Trace(
        rank=RANK,
        actions=tuple(TracedAction(point.at, point.total_bytes, point.after_bytes, "mlp") for point in points),
        peak=tuple((part, getattr(peak, part)) for part in parts),
        ops=(),
        collectives=tuple(
            TracedCollective(row.kind, ranks_of(planned, row), row.size_bytes, row.counts[1], row.phase, "mlp")
            for row in planned.collectives
            if row.counts[1]
        ),
        samples=(),
        reads=(),
        seconds=0.0,
    )


def ranks_of(planned: Plan, row) -> tuple[int, ...]:
    return group_of(RANK, planned.mesh, row.axes)


def test_what_does_as_planned_agrees(planned):
    comparison = compare(planned, as_planned(planned))
    assert comparison.error == 0
    assert comparison.differing == ()
    assert all(row.planned == row.traced for row in comparison.memory)
    assert sum(row.planned for row in comparison.memory) == comparison.planned_bytes


def test_a_collective_too_many_and_one_too_few_are_told(planned):
    """One that is not planned, and one that did not run: each by its group and size."""
    trace = as_planned(planned)
    first, *rest = trace.collectives
    other = TracedCollective("all_reduce", (1, 5, 6), 12345, 2, "forward", "norm")
    changed = attrs.evolve(trace, collectives=(*rest, other))
    (missing, added) = compare(planned, changed).differing
    assert (missing.kind, missing.size_bytes, missing.planned - missing.traced) == (
        first.kind,
        first.size_bytes,
        first.times,
    )
    assert (added.axes, added.size_bytes, added.planned, added.traced) == ("ranks 1 5 6", 12345, 0, 2)


def test_groups_of_one_are_no_collectives(planned):
    trace = as_planned(planned)
    alone = TracedCollective("all_reduce", (RANK,), 4, 1, "step", "norm")
    assert compare(planned, attrs.evolve(trace, collectives=(*trace.collectives, alone))).differing == ()


def test_the_error_is_plan_over_trace(planned):
    trace = as_planned(planned)
    twice = tuple(action._replace(peak_bytes=2 * action.peak_bytes) for action in trace.actions)
    assert compare(planned, attrs.evolve(trace, actions=twice)).error == -0.5
