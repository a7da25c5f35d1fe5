"""GPipe and zero-bubble schedules: valid, within their bounds of memory, and as little idle as published."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.gpipe import gpipe
from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b
from ridgeline.parallel.schedules.zero_bubble import zb_2p, zb_h1
from ridgeline.parallel.simulate import peak_in_flight, simulate
from ridgeline.parallel.validate import check_schedule

QUIET = settings(deadline=None, max_examples=60, database=None)
RANKS, MICROBATCHES = st.integers(1, 8), st.integers(1, 24)
TIMES = st.floats(0.25, 4.0)


def span_idle_us(schedule: Schedule, **stage_us: float) -> list[float]:
    """For each rank the time it waits between its first action's start and its last one's end."""
    times = {kind: [time] * schedule.num_stages for kind, time in stage_us.items()}
    timeline = simulate(schedule, stage_us=times)
    spans = [ends[-1] - starts[0] for starts, ends in zip(timeline.start_us, timeline.end_us, strict=True)]
    return [span - busy for span, busy in zip(spans, timeline.busy_us, strict=True)]


@QUIET
@given(RANKS, MICROBATCHES)
def test_gpipe_holds_every_microbatch(pp: int, num_microbatches: int) -> None:
    """Its makespan is that of 1F1B; its memory is not."""
    schedule = gpipe(pp=pp, num_microbatches=num_microbatches)
    check_schedule(schedule)
    assert peak_in_flight(schedule) == (num_microbatches,) * pp
    times = {kind: [time] * pp for kind, time in (("F", 1.0), ("B", 2.0))}
    other = one_f_one_b(pp=pp, num_microbatches=num_microbatches)
    assert simulate(schedule, stage_us=times).makespan_us == simulate(other, stage_us=times).makespan_us


@QUIET
@given(RANKS, MICROBATCHES)
def test_zb_h1_holds_what_1f1b_holds(pp: int, num_microbatches: int) -> None:
    schedule = zb_h1(pp=pp, num_microbatches=num_microbatches)
    check_schedule(schedule)
    assert max(peak_in_flight(schedule)) == min(pp, num_microbatches)


@QUIET
@given(RANKS, st.integers(0, 16))
def test_zb_h1_waits_a_third_of_1f1b(pp: int, more: int) -> None:
    """``(pp-1)*(F+I-W)`` of section 2.3, against ``(pp-1)*(F+B)``, from enough microbatches on."""
    num_microbatches = pp + more
    schedule = zb_h1(pp=pp, num_microbatches=num_microbatches)
    times = {kind: [1.0] * pp for kind in "FIW"}
    whole = {"F": [1.0] * pp, "B": [2.0] * pp}
    one = simulate(one_f_one_b(pp=pp, num_microbatches=num_microbatches), stage_us=whole).makespan_us
    assert simulate(schedule, stage_us=times).makespan_us == 3 * num_microbatches + pp - 1
    assert one == 3 * num_microbatches + 3 * (pp - 1)


@QUIET
@given(RANKS, MICROBATCHES, TIMES, TIMES, TIMES)
def test_zb_2p_runs_whatever_the_times(
    pp: int, num_microbatches: int, forward: float, input_grad: float, weight_grad: float
) -> None:
    """Within its memory, with fewer microbatches than ranks too."""
    schedule = zb_2p(
        pp=pp, num_microbatches=num_microbatches, forward=forward, input_grad=input_grad, weight_grad=weight_grad
    )
    check_schedule(schedule)
    assert max(peak_in_flight(schedule)) <= min(2 * pp - 1, num_microbatches)


@QUIET
@given(RANKS, st.integers(0, 24))
def test_zb_2p_never_waits_at_equal_times(pp: int, more: int) -> None:
    """The zero bubble of section 2.3."""
    schedule = zb_2p(pp=pp, num_microbatches=2 * pp - 1 + more)
    assert span_idle_us(schedule, F=1.0, I=1.0, W=1.0) == pytest.approx([0.0] * pp)


def test_zb_2p_as_printed() -> None:
    """A warmup of 2*(pp-stage)-1 forwards: the order as it is generated, not a published picture."""
    assert str(zb_2p(pp=2, num_microbatches=3)).splitlines() == [
        "0: 0F0 0F1 0F2 0I0 0W0 0I1 0W1 0I2 0W2",
        "1: 1F0 1I0 1F1 1I1 1F2 1I2 1W0 1W1 1W2",
    ]
