"""Times and memory of a schedule: against a clock that ticks, closed forms and published figures."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.errors import PlanError
from ridgeline.parallel.actions import KINDS, Action
from ridgeline.parallel.schedule import Schedule, parse_schedule
from ridgeline.parallel.schedules.dualpipe import dualpipe_v
from ridgeline.parallel.schedules.interleaved import interleaved_1f1b
from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b
from ridgeline.parallel.simulate import Timeline, peak_in_flight, simulate
from tests.parallel.any_schedule import any_schedule

QUIET = settings(deadline=None, max_examples=80, database=None)


def even(schedule: Schedule, *, forward: float = 1, backward: float = 2, p2p_us: float = 0) -> Timeline:
    stages = schedule.num_stages
    return simulate(schedule, stage_us={"F": [forward] * stages, "B": [backward] * stages}, p2p_us=p2p_us)


@QUIET
@given(any_schedule(), st.data())
def test_it_is_what_a_ticking_clock_shows(schedule: Schedule, data: st.DataObject) -> None:
    """Starts and ends are those of ranks that look, at every tick, whether they can begin their next action."""
    times = st.lists(st.integers(1, 5), min_size=schedule.num_stages, max_size=schedule.num_stages)
    stage_us = {kind: data.draw(times) for kind in KINDS}
    hops = data.draw(st.lists(st.integers(0, 3), min_size=schedule.num_stages - 1, max_size=schedule.num_stages - 1))
    timeline = simulate(schedule, stage_us=stage_us, p2p_us=hops)
    starts = ticking(schedule, stage_us, hops)
    for pp_rank, actions in enumerate(schedule.ranks):
        assert list(timeline.start_us[pp_rank]) == [starts[action] for action in actions]
        ends = [starts[action] + stage_us[action.kind][action.stage] for action in actions]
        assert list(timeline.end_us[pp_rank]) == ends
    busy = sum(stage_us[action.kind][action.stage] for action in starts)
    assert timeline.makespan_us == max(max(ends) for ends in timeline.end_us)
    assert timeline.bubble == pytest.approx(1 - busy / (timeline.makespan_us * schedule.pp))


def ticking(schedule: Schedule, stage_us: dict[str, list[int]], hops: list[int]) -> dict[Action, int]:
    """When each action starts, found tick by tick."""
    start: dict[Action, int] = {}
    home = {action: pp_rank for pp_rank, actions in enumerate(schedule.ranks) for action in actions}

    def arrival(action: Action) -> int | None:
        stage, kind, microbatch = action
        source = stage - 1 if kind == "F" else stage + 1
        if kind in ("W", "R") or not 0 <= source < schedule.num_stages:
            return 0
        maker = Action(source, kind, microbatch)
        if maker not in start:
            return None
        hop = hops[min(stage, source)] if home[maker] != home[action] else 0
        return start[maker] + stage_us[kind][source] + hop

    queues = [list(actions) for actions in schedule.ranks]
    free = [0] * schedule.pp
    tick = 0
    while any(queues):
        for pp_rank, queue in enumerate(queues):
            if queue and free[pp_rank] <= tick:
                ready = arrival(queue[0])
                if ready is not None and ready <= tick:
                    action = queue.pop(0)
                    start[action] = tick
                    free[pp_rank] = tick + stage_us[action.kind][action.stage]
        tick += 1
    return start


@QUIET
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 5), st.integers(1, 9))
def test_bubble_of_1f1b(pp: int, num_microbatches: int, forward: int, backward: int) -> None:
    """Even stages idle for (p-1)/(m+p-1) of a step."""
    timeline = even(one_f_one_b(pp=pp, num_microbatches=num_microbatches), forward=forward, backward=backward)
    assert timeline.makespan_us == (num_microbatches + pp - 1) * (forward + backward)
    assert timeline.bubble == pytest.approx((pp - 1) / (num_microbatches + pp - 1))


@QUIET
@given(st.integers(2, 8), st.integers(2, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9))
def test_bubble_of_interleaved_1f1b(pp: int, vpp: int, groups: int, forward: int, backward: int) -> None:
    """With v chunks even stages idle for (p-1)/(m*v+p-1) of a step."""
    count = pp * groups
    timeline = even(interleaved_1f1b(pp=pp, vpp=vpp, num_microbatches=count), forward=forward, backward=backward)
    assert timeline.makespan_us == (count * vpp + pp - 1) * (forward + backward)
    assert timeline.bubble == pytest.approx((pp - 1) / (count * vpp + pp - 1))


@pytest.mark.parametrize(
    ("schedule", "bubble", "peaks"),
    [
        (one_f_one_b(pp=8, num_microbatches=32), 0.1795, (8, 1)),
        (interleaved_1f1b(pp=8, vpp=2, num_microbatches=32), 0.0986, (11.5, 4.5)),
        (one_f_one_b(pp=16, num_microbatches=64), 0.1899, (16, 1)),
        (interleaved_1f1b(pp=16, vpp=2, num_microbatches=64), 0.1049, (23.5, 8.5)),
    ],
)
def test_figures_that_torch_and_jaxpp_give(schedule: Schedule, bubble: float, peaks: tuple[float, float]) -> None:
    """Bubble, and most and fewest microbatches in flight, as measured from the schedules of other projects."""
    assert round(even(schedule).bubble, 4) == bubble
    held = [peak / schedule.vpp for peak in peak_in_flight(schedule)]
    assert (max(held), min(held)) == peaks


@QUIET
@given(any_schedule(), st.data())
def test_memory_is_what_counting_shows(schedule: Schedule, data: st.DataObject) -> None:
    """At no time does a rank hold more than its peak, and at some time it holds that; what is recomputed, from R on."""
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=schedule.num_stages, max_size=schedule.num_stages))
    for peak, actions in zip(peak_in_flight(schedule, stage_sizes=sizes), schedule.ranks, strict=True):
        last = {action[::2]: index for index, action in enumerate(actions) if action.kind in ("B", "W")}
        first = {action[::2]: index for index, action in enumerate(actions) if action.kind in ("F", "R")}
        held = [
            sum(sizes[cell[0]] for cell in first if first[cell] <= index < last[cell]) for index in range(len(actions))
        ]
        assert peak == max(held)


def test_a_transfer_delays_what_depends_on_it() -> None:
    """One microbatch through two ranks: forward, hop, forward, backward, hop, backward."""
    timeline = even(one_f_one_b(pp=2, num_microbatches=1), p2p_us=0.5)
    assert timeline.start_us == ((0, 5), (1.5, 2.5))
    assert timeline.makespan_us == 7


def test_a_slow_stage_sets_the_pace() -> None:
    """A step costs the slowest stage's time per microbatch, and the filling and draining of the stages before it."""
    schedule = one_f_one_b(pp=4, num_microbatches=100)
    timeline = simulate(schedule, stage_us={"F": [1, 1, 3, 1], "B": [2, 2, 6, 2]})
    assert timeline.makespan_us == 2 * 1 + 100 * (3 + 6) + 2 * 2
    assert timeline.busy_us == (300, 300, 900, 300)


@QUIET
@given(st.integers(2, 6), st.integers(0, 4), st.floats(0.0, 0.9), st.floats(0.5, 2.0))
def test_a_pair_saves_what_it_hides(pp: int, more: int, hidden: float, backward: float) -> None:
    """The second of a pair starts so much before the first ends, or later when its input does; no rank is busier."""
    schedule = dualpipe_v(pp=pp, num_microbatches=2 * pp + more)
    stage_us = {
        kind: [us] * 2 * pp for kind, us in (("F", 1.0), ("B", backward), ("I", backward / 2), ("W", backward / 2))
    }
    apart = simulate(schedule, stage_us=stage_us)
    together = simulate(schedule, stage_us=stage_us, hidden_us=hidden)
    most = min(hidden, 1.0, backward)
    beside = 0.0
    for pp_rank, places in enumerate(schedule.pairs):
        starts, ends = together.start_us[pp_rank], together.end_us[pp_rank]
        for place in range(len(starts) - 1):
            overlap = ends[place] - starts[place + 1]
            assert overlap <= (most if place in places else 0.0) + 1e-9
        beside = max(beside, *(ends[place] - starts[place + 1] for place in places))
        busy = apart.busy_us[pp_rank] - len(places) * most
        assert busy - 1e-9 <= together.busy_us[pp_rank] <= apart.busy_us[pp_rank] + 1e-9
    assert beside == pytest.approx(most)
    assert together.makespan_us <= apart.makespan_us


def test_missing_times_are_named() -> None:
    """Every kind that occurs needs a time for each stage, and every boundary its own."""
    schedule = one_f_one_b(pp=2, num_microbatches=1)
    with pytest.raises(
        PlanError, match=r"stage_us\['B'\]=\(\): must hold 2 times >= 0, one for each stage\np2p_us=\(1, 1\)"
    ):
        simulate(schedule, stage_us={"F": (1, 1)}, p2p_us=(1, 1))


def test_a_deadlock_is_shown() -> None:
    """A schedule that cannot run has no times."""
    schedule = parse_schedule("0: 0F0 0B0 0F1 0B1\n1: 1F1 1B1 1F0 1B0", name="mine")
    with pytest.raises(PlanError, match=r"ranks\[0\]\[1\]='0B0': never starts"):
        even(schedule)


def test_planning_takes_milliseconds() -> None:
    """Of 16 ranks in two chunks, 64 microbatches cost less than 50 ms of one core and 1,024 less than a second."""

    def made(num_microbatches: int) -> Callable[[], float]:
        return lambda: even(interleaved_1f1b(pp=16, vpp=2, num_microbatches=num_microbatches)).bubble

    assert quickest(made(64)) < 0.05
    assert quickest(made(1024)) < 0.8


def quickest(function: Callable[[], float], runs: int = 3) -> float:
    times = []
    for _ in range(runs):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return min(times)
