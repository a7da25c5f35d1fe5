"""A trace of torch.profiler, read as a summary."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ridgeline.apps.profiles.intervals import Span, length, union, within
from ridgeline.apps.profiles.summary import RankProfile, StepTime, op_times
from ridgeline.core.errors import Problem, SpecError

STEP = "ProfilerStep#"
COLLECTIVES = ("gloo:", "nccl:", "nccl", "hccl")
"""How the names of collectives begin; the ops of c10d only ask for them, and wait."""


class Event(msgspec.Struct):
    """One event of a trace, times in microseconds."""

    name: str = ""
    ph: str = ""
    cat: str = ""
    pid: Any = None
    tid: Any = None
    ts: float = 0.0
    dur: float = 0.0

    @property
    def span(self) -> Span:
        return self.ts, self.ts + self.dur


class Trace(msgspec.Struct):
    """What is read of a file."""

    traceEvents: list[Event] = []  # noqa: N815  the format's name


def read(path: Path, *, rank: int) -> RankProfile:
    """The summary of a rank's trace.

    Time is told of what ran on the card if the trace has its kernels, else of the host's operations.

    Raises:
        SpecError: It is no trace, or has no step.
    """
    try:
        events = msgspec.json.decode(path.read_bytes(), type=Trace).traceEvents
    except (msgspec.DecodeError, OSError) as error:
        raise SpecError(Problem("profile", str(path), f"is no trace: {error}")) from error
    whole = [event for event in events if event.ph == "X"]
    steps = [event for event in whole if event.cat == "user_annotation" and event.name.startswith(STEP)]
    if not steps:
        raise SpecError(Problem("profile", str(path), "holds no step", "profile a step that the run makes"))
    kernels = [event for event in whole if event.cat == "kernel"]
    computing = kernels or [event for event in whole if event.cat == "cpu_op"]
    apart = [event for event in whole if event.cat == "user_annotation" and event.name.startswith(COLLECTIVES)]
    sending = [event for event in kernels if event.name.startswith(COLLECTIVES)] if kernels else apart
    computing = [event for event in computing if not event.name.startswith((*COLLECTIVES, "c10d::"))]
    compute, communication = union(e.span for e in computing), union(e.span for e in sending)
    times = tuple(_step_time(step, compute, communication) for step in sorted(steps, key=lambda step: step.ts))
    ops = op_times((*own_times(computing), *((event.name, event.dur) for event in sending)))
    return RankProfile(rank=rank, steps=times, ops=ops)


def own_times(events: Iterable[Event]) -> Iterator[tuple[str, float]]:
    """Of every event its name and its time without that of the events inside it, on its thread."""
    threads: Mapping[Any, list[Event]] = defaultdict(list)
    for event in events:
        threads[event.pid, event.tid].append(event)
    for thread in threads.values():
        inside: dict[int, float] = defaultdict(float)
        open_events: list[Event] = []
        for event in sorted(thread, key=lambda event: (event.ts, -event.dur)):
            while open_events and open_events[-1].span[1] <= event.ts:
                open_events.pop()
            if open_events:
                inside[id(open_events[-1])] += event.dur
            open_events.append(event)
        yield from ((event.name, max(0.0, event.dur - inside[id(event)])) for event in thread)


def _step_time(step: Event, compute: list[Span], communication: list[Span]) -> StepTime:
    computing, sending = within(compute, step.span), within(communication, step.span)
    busy = length(union((*computing, *sending)))
    return StepTime(
        step=int(step.name.removeprefix(STEP)),
        total_us=step.dur,
        compute_us=length(computing),
        communication_us=length(sending),
        exposed_us=busy - length(computing),
        idle_us=step.dur - busy,
    )
