"""What a profile tells, whoever took it: where the time of each step went, and which operations took most of it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from ridgeline.core.frozen import frozen


@frozen(kw_only=True)
class StepTime:
    """Where the time of a step went on one rank, in microseconds.

    Attributes:
        step: Its number in the profile.
        total_us: From its start to the next one's.
        compute_us: Something was computed.
        communication_us: Something was sent or received; much of it beside compute, if all is well.
        exposed_us: Of it, what no compute hid.
        idle_us: Neither.
    """

    step: int
    total_us: float
    compute_us: float
    communication_us: float
    exposed_us: float
    idle_us: float


@frozen(kw_only=True)
class OpTime:
    """All calls of an operation: on a host without what it called in turn."""

    name: str
    calls: int
    total_us: float


@frozen(kw_only=True)
class RankProfile:
    """The profile of one rank; operations of all its steps, those that took longest first."""

    rank: int
    steps: tuple[StepTime, ...]
    ops: tuple[OpTime, ...]


def op_times(times: Iterable[tuple[str, float]]) -> tuple[OpTime, ...]:
    """The calls of each operation together, of every call's name and microseconds; those that took longest first."""
    calls: dict[str, list[float]] = defaultdict(list)
    for name, duration in times:
        calls[name].append(duration)
    ops = (OpTime(name=name, calls=len(each), total_us=sum(each)) for name, each in calls.items())
    return tuple(sorted(ops, key=lambda op: -op.total_us))


def step_us(profiles: Sequence[RankProfile]) -> float:
    """A step's time: the median over steps, of the slowest rank."""
    return max(median(step.total_us for step in profile.steps) for profile in profiles)


def mean_step(profile: RankProfile) -> StepTime:
    """Where the time of a step of this rank goes in the mean."""
    steps = profile.steps
    names = ("total_us", "compute_us", "communication_us", "exposed_us", "idle_us")
    return StepTime(
        step=steps[0].step, **{name: sum(getattr(step, name) for step in steps) / len(steps) for name in names}
    )
