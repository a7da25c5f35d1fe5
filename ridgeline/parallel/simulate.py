"""When each action of a schedule runs, how much of a step is bubble, and how many activations a rank holds."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter, sub

from ridgeline.core.errors import PlanError, Problem
from ridgeline.core.frozen import frozen
from ridgeline.parallel.actions import Action
from ridgeline.parallel.dataflow import Flow, flow_of, hop_times, run
from ridgeline.parallel.schedule import Schedule


@frozen(kw_only=True)
class Timeline:
    """A schedule in time.

    Attributes:
        schedule: What was run.
        start_us, end_us: For each pipeline rank the times of its actions, in microseconds from the start of the step.
    """

    schedule: Schedule
    start_us: tuple[tuple[float, ...], ...]
    end_us: tuple[tuple[float, ...], ...]

    @property
    def makespan_us(self) -> float:
        """From the first action's start to the last one's end."""
        return max((ends[-1] for ends in self.end_us if ends), default=0.0)

    @property
    def busy_us(self) -> tuple[float, ...]:
        """For each pipeline rank the time in which it runs an action, or a pair."""
        rows = zip(self.start_us, self.end_us, strict=True)
        if not any(self.schedule.pairs):
            return tuple(sum(map(sub, ends, starts)) for starts, ends in rows)
        return tuple(sum(map(sub, ends, map(max, starts, (0.0, *ends)))) for starts, ends in rows)

    @property
    def span_us(self) -> tuple[float, ...]:
        """For each pipeline rank the time from its first action's start to its last one's end."""
        rows = zip(self.start_us, self.end_us, strict=True)
        return tuple(ends[-1] - starts[0] if ends else 0.0 for starts, ends in rows)

    @property
    def bubble(self) -> float:
        """Idle share of all ranks' time, 0 .. 1."""
        span = self.makespan_us * self.schedule.pp
        return 1.0 - sum(self.busy_us) / span if span else 0.0


def simulate(
    schedule: Schedule,
    *,
    stage_us: Mapping[str, Sequence[float]],
    p2p_us: float | Sequence[float] = 0.0,
    hidden_us: float | Callable[[int, int], float] = 0.0,
) -> Timeline:
    """Run a schedule on a clock: each rank in order, each action when its input has arrived.

    Args:
        schedule: A schedule that ``check_schedule`` accepts.
        stage_us: For each kind of action that occurs its time on every stage, ``pp*vpp`` entries.
        p2p_us: Time of one transfer between two ranks, for all or for each of the ``pp*vpp - 1`` boundaries of stages.
            Transfers run beside the compute; what depends on one waits for it.
        hidden_us: What a pair saves by running together: how long its second action runs beside its first, at most the
            whole of the shorter one. For all pairs, or by the stages of a forward and a backward.

    Raises:
        PlanError: Times are missing, or the schedule deadlocks.
    """
    hops = hop_times(p2p_us, schedule)
    if problems := tuple(_time_problems(schedule, stage_us, hops)):
        raise PlanError(problems)
    flow = flow_of(schedule)
    durations = [stage_us[kind][stage] for actions in schedule.ranks for stage, kind, _ in actions]
    early = _early(schedule, flow, durations, hidden_us) if schedule.pairs and hidden_us else {}
    start, end = run(schedule, flow, durations=durations, hop_us=hops, early=early)
    return Timeline(schedule=schedule, start_us=_by_rank(start, flow), end_us=_by_rank(end, flow))


def peak_in_flight(schedule: Schedule, *, stage_sizes: Sequence[int] | None = None) -> tuple[int, ...]:
    """The most activations each pipeline rank holds at a time.

    An activation lives from its forward, or from where it is recomputed, to its backward, or to the weight gradient
    where the backward is split.

    Args:
        schedule: A schedule of training that ``check_schedule`` accepts.
        stage_sizes: What one microbatch's activation of each stage counts, in bytes for instance; None counts 1.

    Example:
        >>> from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b
        >>> peak_in_flight(one_f_one_b(pp=4, num_microbatches=8))
        (4, 3, 2, 1)
    """
    sizes = [1] * schedule.num_stages if stage_sizes is None else stage_sizes
    return tuple(max(held_during(actions, sizes), default=0) for actions in schedule.ranks)


def held_during(actions: Sequence[Action], stage_sizes: Sequence[int] | None = None) -> Iterator[int]:
    """What a rank holds while each of its actions runs, as ``peak_in_flight`` counts it."""
    recomputed = {(stage, microbatch) for stage, kind, microbatch in actions if kind == "R"}
    held = 0
    for stage, kind, microbatch in actions:
        size = 1 if stage_sizes is None else stage_sizes[stage]
        if kind == "R" or (kind == "F" and (stage, microbatch) not in recomputed):
            held += size
        yield held
        if kind == "B" or kind == "W":
            held -= size


def _time_problems(
    schedule: Schedule, stage_us: Mapping[str, Sequence[float]], hops: Sequence[float]
) -> Iterator[Problem]:
    kinds = sorted(set(map(itemgetter(1), itertools.chain.from_iterable(schedule.ranks))))
    wanted = [(f"stage_us[{kind!r}]", stage_us.get(kind, ()), "stage", schedule.num_stages) for kind in kinds]
    for path, times, place, size in (*wanted, ("p2p_us", hops, "boundary of stages", schedule.num_stages - 1)):
        if len(times) != size or any(time < 0 for time in times):
            yield Problem(path, tuple(times), f"must hold {size} times >= 0, one for each {place}")


def _early(
    schedule: Schedule, flow: Flow, durations: Sequence[float], hidden_us: float | Callable[[int, int], float]
) -> dict[int, float]:
    """For the second action of each pair how long before the end of the first it may begin."""
    early = {}
    for first, actions, places in zip(flow.first, schedule.ranks, schedule.pairs, strict=False):
        for place in places:
            stages = actions[place].stage, actions[place + 1].stage
            hidden = hidden_us(*stages) if callable(hidden_us) else hidden_us
            early[first + place + 1] = min(hidden, *durations[first + place : first + place + 2])
    return early


def _by_rank(times: list[float], flow: Flow) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(times[first:stop]) for first, stop in itertools.pairwise(flow.first))
