"""Pairs in 1F1B and interleaved 1F1B: valid, each forward but those of the warmup in one, one activation more."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.dualpipe import dualpipe_v
from ridgeline.parallel.schedules.interleaved import interleaved_1f1b
from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b
from ridgeline.parallel.schedules.pairs import paired
from ridgeline.parallel.simulate import peak_in_flight
from ridgeline.parallel.validate import check_schedule


@st.composite
def alternating(draw: st.DrawFn) -> Schedule:
    pp = draw(st.integers(1, 5))
    if pp > 1 and draw(st.booleans()):
        return interleaved_1f1b(pp=pp, vpp=draw(st.integers(2, 3)), num_microbatches=pp * draw(st.integers(1, 3)))
    return one_f_one_b(pp=pp, num_microbatches=draw(st.integers(1, 12)))


@settings(deadline=None, max_examples=60, database=None)
@given(alternating())
def test_each_forward_after_the_warmup_has_a_backward(schedule: Schedule) -> None:
    """At most one activation more is held, and no rank's order of forwards or of backwards is another."""
    made = paired(schedule)
    check_schedule(made, limit=[peak + 1 for peak in peak_in_flight(schedule)])
    for pp_rank, (before, after) in enumerate(zip(schedule.ranks, made.ranks, strict=True)):
        for kind in "FB":
            assert [one for one in after if one.kind == kind] == [one for one in before if one.kind == kind]
        warmup = next(place for place, action in enumerate(before) if action.kind == "B")
        forwards = len(before) // 2
        assert len(made.pairs_of(pp_rank)) == (forwards - min(warmup, forwards - 1) if forwards > 1 else 0)
    assert paired(made) == made


def test_pairs_that_are_there_stay() -> None:
    schedule = dualpipe_v(pp=2, num_microbatches=4)
    assert paired(schedule) == schedule
