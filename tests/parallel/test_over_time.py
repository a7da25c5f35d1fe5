"""Memory over time reaches the plan's peaks and comes back to what a step leaves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.parallel.over_time import memory_over_time
from ridgeline.parallel.plan import plan
from tests.parallel.examples import DENSE, MOE, job_of

jobs = st.builds(
    job_of,
    st.sampled_from([DENSE, MOE]),
    layout__pp=st.sampled_from([1, 2, 4]),
    layout__ep=st.just(1),
    memory__distributed_optimizer=st.booleans(),
    precision__grads=st.sampled_from(["fp32", "bf16"]),
    batch__seq_len=st.sampled_from([16, 256]),
)


@given(jobs)
@settings(deadline=None, max_examples=30)
def test_the_highest_point_is_the_planned_peak(job):
    """Of the first step and of every later one, at the action the plan names."""
    planned = plan(job)
    for rank in planned.memory:
        later, first = (memory_over_time(planned, rank.pp_rank, first=first) for first in (False, True))
        peak = max(later, key=lambda point: point.total_bytes)
        assert (peak.total_bytes, peak.at) == (rank.allocated_bytes, rank.peak_at)
        assert max(point.total_bytes for point in first) == rank.first_step_bytes
        assert first[-1] == later[-1]
        assert later[-1].after_bytes == rank.after_step_bytes
        assert [point.at for point in later[:-1]] == [str(one) for one in planned.schedule.ranks[rank.pp_rank]]


@given(jobs)
@settings(deadline=None, max_examples=20)
def test_a_step_gives_back_what_it_took(job):
    """After the last backward nothing is left of the activations, and before it never less than one microbatch's."""
    planned = plan(job)
    for rank in planned.memory:
        points = memory_over_time(planned, rank.pp_rank)
        static = rank.static_bytes + rank.buffers_bytes
        assert points[-2].after_bytes == static
        assert all(point.after_bytes >= static for point in points)
        assert points[0].at == f"{rank.pp_rank}F0"


@pytest.mark.parametrize("first", [True, False])
def test_moments_come_with_the_first_update(first):
    points = memory_over_time(plan(job_of(DENSE, world_size=1)), 0, first=first)
    assert {point.moments == 0 for point in points[:-1]} == {first}
    assert points[-1].moments > 0
