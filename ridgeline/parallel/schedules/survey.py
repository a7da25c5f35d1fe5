"""Every schedule by name for the same numbers: how long a step takes, how much of it is bubble, what a rank holds."""

from collections.abc import Sequence

import attrs

from ridgeline.core.errors import PlanError
from ridgeline.core.fields import at_least, check_spec, real
from ridgeline.core.frozen import frozen
from ridgeline.core.layout import INTERLEAVED, V_SHAPED
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.known import SCHEDULES, Pipeline, plan_schedule
from ridgeline.parallel.simulate import Timeline, peak_in_flight, simulate


@frozen(kw_only=True)
class Even:
    """A pipeline of equal ranks.

    Attributes:
        pp: Pipeline ranks.
        num_microbatches: Microbatches of one step.
        vpp: Chunks per rank of those schedules that interleave.
        slices: Slices of a sequence of those that cut it.
        forward_us, input_us, weight_us: One microbatch on one rank, all its chunks together: the forward, and the two
            parts of the backward.
        p2p_us: A transfer between two ranks.
    """

    pp: int = at_least(1)
    num_microbatches: int = at_least(1)
    vpp: int = at_least(1, default=2)
    slices: int = at_least(1, default=4)
    forward_us: float = real(1.0, minimum=0)
    input_us: float = real(1.0, minimum=0)
    weight_us: float = real(1.0, minimum=0)
    p2p_us: float = real(0.0, minimum=0)
    __attrs_post_init__ = check_spec


@attrs.frozen(kw_only=True)
class Figures:
    """What a schedule makes of a pipeline.

    Attributes:
        chunks: Per rank.
        makespan_us: From the first action's start to the last one's end.
        bubble: Idle share of all ranks' time in that, 0 .. 1.
        span_bubble: Idle share of the rank that waits most between its own first action and its own last; 0 .. 1.
        most, fewest: Microbatches that a rank holds at its peak, a chunk or a slice counted as its part of one.
    """

    name: str
    chunks: int
    makespan_us: float
    bubble: float
    span_bubble: float
    most: float
    fewest: float


def survey(even: Even) -> tuple[tuple[Figures, ...], tuple[tuple[str, PlanError], ...]]:
    """The figures of every schedule that exists for these numbers; the names of the others, and why they do not."""
    figures, errors = [], []
    for name in SCHEDULES:
        try:
            figures.append(figures_of(even_timeline(name, even)))
        except PlanError as error:
            errors.append((name, error))
    return tuple(figures), tuple(errors)


def even_timeline(name: str, even: Even) -> Timeline:
    """The schedule of this name, made for such a pipeline, and run.

    Raises:
        PlanError: There is none of this name, or for these numbers.
    """
    chunks = 2 if name in V_SHAPED else even.vpp if name in INTERLEAVED else 1
    parts = chunks * (even.slices if name == "seq1f1b" else 1)
    whole = even.input_us + even.weight_us
    times = {"F": even.forward_us, "I": even.input_us, "W": even.weight_us, "B": whole}
    stage_us = {kind: (us / parts,) * (even.pp * chunks) for kind, us in times.items()}
    pipeline = Pipeline(
        pp=even.pp,
        vpp=chunks,
        num_microbatches=even.num_microbatches,
        slices=even.slices,
        stage_us=stage_us,
        p2p_us=even.p2p_us,
    )
    return simulate(plan_schedule(name, pipeline), stage_us=stage_us, p2p_us=even.p2p_us)


def figures_of(timeline: Timeline) -> Figures:
    """What a step costs."""
    schedule, peaks = timeline.schedule, _held(timeline.schedule)
    waits = [1 - busy / span if span else 0.0 for busy, span in zip(timeline.busy_us, timeline.span_us, strict=True)]
    return Figures(
        name=schedule.name,
        chunks=schedule.vpp,
        makespan_us=timeline.makespan_us,
        bubble=timeline.bubble,
        span_bubble=max(0.0, *waits),
        most=max(peaks),
        fewest=min(peaks),
    )


def _held(schedule: Schedule) -> Sequence[float]:
    return [peak / (schedule.vpp * schedule.slices) for peak in peak_in_flight(schedule)]
