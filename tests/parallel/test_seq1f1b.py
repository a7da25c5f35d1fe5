"""Seq1F1B: slices in turn, and the bubble and memory of its paper."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b
from ridgeline.parallel.schedules.seq1f1b import seq1f1b
from ridgeline.parallel.simulate import simulate
from ridgeline.parallel.validate import check_schedule

QUIET = settings(deadline=None, max_examples=60, database=None)


@QUIET
@given(st.integers(1, 8), st.integers(1, 10), st.integers(1, 6))
def test_bubble_and_memory_are_divided(pp: int, num_microbatches: int, slices: int) -> None:
    """``(p-1)*(F+B)/s`` idle, and ``s+p-1`` slices on the first rank: the table of MindSpeed-LLM's seq1f1b.md."""
    schedule = seq1f1b(pp=pp, num_microbatches=num_microbatches, slices=slices)
    most = [pp - pp_rank + slices - 1 for pp_rank in range(pp)]
    check_schedule(schedule, limit=[min(held, num_microbatches * slices) for held in most])
    timeline = simulate(schedule, stage_us={"F": [1 / slices] * pp, "B": [2 / slices] * pp})
    assert timeline.makespan_us == pytest.approx(3 * num_microbatches + 3 * (pp - 1) / slices)


@QUIET
@given(st.integers(1, 6), st.integers(1, 8))
def test_one_slice_is_1f1b(pp: int, num_microbatches: int) -> None:
    schedule = seq1f1b(pp=pp, num_microbatches=num_microbatches, slices=1)
    assert schedule.ranks == one_f_one_b(pp=pp, num_microbatches=num_microbatches).ranks


def test_as_printed() -> None:
    """Slices 0 and 1 are microbatch 0, slices 2 and 3 microbatch 1; backwards take the last slice first."""
    assert str(seq1f1b(pp=2, num_microbatches=2, slices=2)).splitlines() == [
        "0: 0F0 0F1 0F2 0B1 0F3 0B0 0B3 0B2",
        "1: 1F0 1F1 1B1 1F2 1B0 1F3 1B3 1B2",
    ]
