"""Recomputing as actions: rewritten schedules stay schedules, hold less, and wait less than recomputing backwards."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.errors import PlanError
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.dualpipe import dualpipe_v
from ridgeline.parallel.schedules.interleaved import interleaved_1f1b
from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b
from ridgeline.parallel.schedules.recompute import recompute_in_advance, recompute_in_bubble
from ridgeline.parallel.schedules.zero_bubble import zb_v
from ridgeline.parallel.simulate import peak_in_flight, simulate
from ridgeline.parallel.validate import check_schedule

QUIET = settings(deadline=None, max_examples=50, database=None)
RECOMPUTING = {"F": 1.0, "B": 3.0}
APART = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0, "R": 1.0}


def even(schedule: Schedule, times: dict[str, float]) -> dict[str, list[float]]:
    return {kind: [us / schedule.vpp] * schedule.num_stages for kind, us in times.items()}


@st.composite
def whole(draw: st.DrawFn) -> Schedule:
    """A schedule whose backwards are whole, or nearly all."""
    kind, pp, groups = (
        draw(st.sampled_from(("1f1b", "vpp", "dualpipe"))),
        draw(st.integers(2, 5)),
        draw(st.integers(2, 3)),
    )
    if kind == "vpp":
        return interleaved_1f1b(pp=pp, vpp=draw(st.integers(2, 3)), num_microbatches=pp * groups)
    generate = one_f_one_b if kind == "1f1b" else dualpipe_v
    return generate(pp=pp, num_microbatches=pp * groups + draw(st.integers(0, 3)))


@QUIET
@given(whole())
def test_in_advance_no_step_takes_longer(schedule: Schedule) -> None:
    """Recomputing before a gradient arrives is never later than after, and what is needed at once is not dropped."""
    ahead = recompute_in_advance(schedule)
    check_schedule(ahead)
    assert [[a for a in row if a.kind != "R"] for row in ahead.ranks] == [list(row) for row in schedule.ranks]
    recomputes = {action[::2] for row in ahead.ranks for action in row if action.kind == "R"}
    for row in schedule.ranks:
        for before, after in itertools.pairwise(row):
            if after.kind in "BI":
                assert (after[::2] in recomputes) == (before != (after.stage, "F", after.microbatch))
    split = {**APART, "B": 2.0}
    slow = simulate(schedule, stage_us=even(schedule, {**RECOMPUTING, "I": 2.0, "W": 1.0}))
    assert simulate(ahead, stage_us=even(ahead, split)).makespan_us <= slow.makespan_us + 1e-9


@QUIET
@given(whole(), st.data())
def test_in_bubbles_the_limit_is_kept(schedule: Schedule, data: st.DataObject) -> None:
    """Any limit that backwards leave room for; a rank that holds no more drops nothing, and order is kept."""
    peaks = peak_in_flight(schedule)
    fewest = 2 if schedule.name.startswith("dualpipe") else 1
    limit = data.draw(st.integers(fewest, max(peaks)))
    times = st.lists(st.floats(0.25, 3.0), min_size=schedule.num_stages, max_size=schedule.num_stages)
    stage_us = {kind: data.draw(times) for kind in "FBIWR"}
    kept = recompute_in_bubble(schedule, limit=limit, stage_us=stage_us, p2p_us=0.1)
    check_schedule(kept, limit=limit)
    assert kept.pairs == () or sum(map(len, kept.pairs)) == sum(map(len, schedule.pairs))
    for peak, before, after in zip(peaks, schedule.ranks, kept.ranks, strict=True):
        assert [action for action in after if action.kind != "R"] == list(before)
        assert (after == before) == (peak <= limit)


@QUIET
@given(whole(), st.data())
def test_waits_are_used(schedule: Schedule, data: st.DataObject) -> None:
    """A recompute moved into a wait that has room for it makes no step longer."""
    limit = data.draw(st.integers(2, max(2, *peak_in_flight(schedule))))
    stage_us = even(schedule, APART)
    early = recompute_in_bubble(schedule, limit=limit, stage_us=stage_us)
    late = recompute_in_bubble(schedule, limit=limit, stage_us={**stage_us, "R": [1e9] * schedule.num_stages})
    assert simulate(early, stage_us=stage_us).makespan_us <= simulate(late, stage_us=stage_us).makespan_us + 1e-9


def test_interleaved_1f1b_holds_as_much_as_1f1b() -> None:
    """``pp*vpp`` of a chunk, what MindSpeed promises of it, for 9 recomputes of 128 and one hundredth of the time."""
    schedule = interleaved_1f1b(pp=4, vpp=2, num_microbatches=16)
    kept = recompute_in_bubble(schedule, limit=8, stage_us=even(schedule, APART))
    assert max(peak_in_flight(schedule)) == 11
    assert max(peak_in_flight(kept)) == 8
    assert sum(action.kind == "R" for row in kept.ranks for action in row) == 9
    plain, made = (simulate(one, stage_us=even(one, APART)).makespan_us for one in (schedule, kept))
    assert made / plain - 1 < 0.01


def test_as_printed() -> None:
    """The first rank recomputes while its gradient is on the way; the last drops nothing."""
    schedule = one_f_one_b(pp=3, num_microbatches=4)
    assert str(recompute_in_advance(schedule)).splitlines() == [
        "0: 0F0 0F1 0F2 0R0 0B0 0F3 0R1 0B1 0R2 0B2 0R3 0B3",
        "1: 1F0 1F1 1R0 1B0 1F2 1R1 1B1 1F3 1R2 1B2 1R3 1B3",
        "2: 2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3",
    ]
    assert str(recompute_in_bubble(schedule, limit=2, stage_us=even(schedule, APART))).splitlines() == [
        "0: 0F0 0F1 0F2 0B0 0F3 0B1 0R2 0B2 0B3",
        "1: 1F0 1F1 1B0 1F2 1B1 1F3 1B2 1B3",
        "2: 2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3",
    ]


def test_a_limit_below_what_backwards_hold_is_refused() -> None:
    """Weight gradients that wait hold what cannot be dropped."""
    schedule = zb_v(pp=4, num_microbatches=10)
    with pytest.raises(PlanError, match=r"limit=3: is less than the \d+ activations that a rank holds"):
        recompute_in_bubble(schedule, limit=3, stage_us=even(schedule, APART))
