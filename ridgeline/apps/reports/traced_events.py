"""A trace as Chrome trace events: memory over time and what ran, a microsecond an operation.

Source:
    As of ``ridgeline.apps.reports.planned_events``, whose events a planned step is.
"""

from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Any, TypeAlias

from msgspec.json import encode

from ridgeline.parallel.traced import Sample, Trace

GIB = 2**30
ACTIONS, MODULES = 0, 1
"""Lanes."""

Event: TypeAlias = dict[str, Any]


def events_text(trace: Trace) -> str:
    """One step as the text of a trace file, an event a line."""
    return "[\n" + ",\n".join(encode(event).decode() for event in _events(trace)) + "\n]\n"


def _events(trace: Trace) -> Iterator[Event]:
    yield _name("process_name", trace.rank, ACTIONS, f"rank {trace.rank}, an operation a microsecond")
    yield _name("thread_name", trace.rank, ACTIONS, "actions")
    yield _name("thread_name", trace.rank, MODULES, "modules")
    for sample in trace.samples:
        place = {"pid": trace.rank, "tid": ACTIONS, "ts": sample.ops}
        yield {"name": "live, GiB", "ph": "C", **place, "args": {"GiB": round(sample.live_bytes / GIB, 6)}}
    ends = [*trace.samples, trace.samples[-1]]
    for sample, after in pairwise(ends):
        if after.ops > sample.ops:
            yield _slice(trace, MODULES, sample.module, sample, after)
    runs = [next(group) for _, group in groupby(trace.samples, key=lambda sample: sample.at)]
    for sample, after in pairwise([*runs, trace.samples[-1]]):
        yield _slice(trace, ACTIONS, sample.at, sample, after)


def _slice(trace: Trace, lane: int, name: str, begin: Sample, end: Sample) -> Event:
    place = {"pid": trace.rank, "tid": lane, "ts": begin.ops, "dur": end.ops - begin.ops}
    return {"name": name, "ph": "X", **place, "args": {"live_bytes": begin.live_bytes}}


def _name(kind: str, rank: int, lane: int, name: str) -> Event:
    return {"name": kind, "ph": "M", "pid": rank, "tid": lane, "args": {"name": name}}
