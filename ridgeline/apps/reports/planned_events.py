"""One planned step as Chrome trace events: for Perfetto, MindStudio Insight and ``chrome://tracing``.

    process   a pipeline rank
    lanes     what it computes, what it sends, and what ends the step
    arrows    from a transfer to the action that waits for it
    counter   its allocated memory

Times are microseconds to a nanosecond, which is as fine as the readers keep them, and never in the form ``1e-05``,
which MindStudio Insight does not read.

Source:
    Trace Event Format (Google): phases X, s, f, C and M; an arrow binds to the slice about its end. MindStudio Insight
    91d1c4ec, server/src/modules/timeline/core/parser/EventUtil.cpp and EventParser.cpp: the fields that are read, of an
    array of events; a counter at time 0 is passed over.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from msgspec.json import encode

from ridgeline.parallel.actions import KINDS, Action
from ridgeline.parallel.dataflow import flow_of
from ridgeline.parallel.mesh import group_of, rank_coords
from ridgeline.parallel.over_time import memory_over_time
from ridgeline.parallel.plan import Plan

GIB = 2**30
COMPUTE, STEP_END, SENDS = 0, 1, 10
"""Lanes; transfers that overlap take lanes 10, 11, ..."""

Event: TypeAlias = dict[str, Any]


def trace_text(plan: Plan) -> str:
    """One step as the text of a trace file, an event a line."""
    return "[\n" + ",\n".join(encode(event).decode() for event in trace_events(plan)) + "\n]\n"


def trace_events(plan: Plan) -> list[Event]:
    """Every event of one step, as JSON takes it."""
    return [*_names(plan), *_actions(plan), *_transfers(plan), *_step_end(plan), *_memory(plan)]


def _names(plan: Plan) -> Iterator[Event]:
    """What processes and their compute lanes are called; a process is one of the pipeline that rank 0 is in."""
    for pp_rank, rank in enumerate(group_of(0, plan.mesh, "pp")):
        stages = ", ".join(map(str, plan.stages.owned_by(pp_rank)))
        coords = rank_coords(rank, plan.mesh)
        where = f"rank {rank}: tp {coords.tp_rank}, cp {coords.cp_rank}, dp {coords.dp_rank}"
        yield _meta("process_name", pp_rank, name=f"pp rank {pp_rank}, stage {stages} ({where})")
        yield _meta("process_sort_index", pp_rank, sort_index=pp_rank)
        yield from _lane(pp_rank, COMPUTE, "compute")
        yield from _lane(pp_rank, STEP_END, "end of step")


def _actions(plan: Plan) -> Iterator[Event]:
    timeline = plan.timeline
    rows = zip(plan.schedule.ranks, timeline.start_us, timeline.end_us, strict=True)
    for pp_rank, (actions, starts, ends) in enumerate(rows):
        for action, start, end in zip(actions, starts, ends, strict=True):
            stage, kind, microbatch = action
            about = {"stage": stage, "microbatch": microbatch, "chunk": plan.stages.owned_by(pp_rank).index(stage)}
            yield _slice(str(Action(*action)), KINDS[kind], pp_rank, COMPUTE, start, end, **about)


def _transfers(plan: Plan) -> Iterator[Event]:
    """A slice for each transfer on a lane of its sender that is free, and an arrow to the action that takes it."""
    schedule, timeline = plan.schedule, plan.timeline
    flow = flow_of(schedule)
    actions = [Action(*action) for row in schedule.ranks for action in row]
    starts = [start for row in timeline.start_us for start in row]
    ends = [end for row in timeline.end_us for end in row]
    size_bytes = next((row.size_bytes for row in plan.collectives if row.kind == "p2p" and row.axes == "pp"), 0)
    takers = sorted((ends[flow.maker[taker]], taker) for taker, boundary in enumerate(flow.hop) if boundary >= 0)
    free_at: list[list[float]] = [[] for _ in range(schedule.pp)]
    for arrow, (begin, taker) in enumerate(takers):
        maker = flow.maker[taker]
        sender, receiver = flow.rank[maker], flow.rank[taker]
        arrival = begin + plan.time.p2p_us[flow.hop[taker]]
        lanes = free_at[sender]
        lane = next((lane for lane, free in enumerate(lanes) if free <= begin), len(lanes))
        lanes[lane : lane + 1] = [arrival]
        what = "activations" if actions[maker].kind == "F" else "gradients"
        about = {"to": f"pp rank {receiver}", "for": str(actions[taker]), "bytes": size_bytes}
        yield _slice(f"{actions[maker]} {what}", "transfer", sender, SENDS + lane, begin, arrival, **about)
        ends_of_arrow = (("s", sender, SENDS + lane, begin), ("f", receiver, COMPUTE, starts[taker]))
        for phase, pp_rank, tid, at in ends_of_arrow:
            place = {"pid": pp_rank, "tid": tid, "ts": _us(at)}
            yield {
                "name": what,
                "cat": "p2p",
                "ph": phase,
                "id": arrow,
                **place,
                **({"bp": "e"} if phase == "f" else {}),
            }
    for pp_rank, lanes in enumerate(free_at):
        for lane in range(len(lanes)):
            yield from _lane(pp_rank, SENDS + lane, "sends" if len(lanes) == 1 else f"sends {lane}")


def _step_end(plan: Plan) -> Iterator[Event]:
    """What follows the pipeline's last action on all ranks: collectives that nothing hides, and the update."""
    parts, begin = dict(plan.time.parts), plan.timeline.makespan_us
    for name, title in (("dp", "gradients and weights over dp"), ("update", "optimizer")):
        end = begin + parts.get(name, 0.0)
        for pp_rank in range(plan.mesh.pp) if end > begin else ():
            yield _slice(title, "step", pp_rank, STEP_END, begin, end)
        begin = end


def _memory(plan: Plan) -> Iterator[Event]:
    """Allocated memory: at its worst within each action and the update, and what is left after each."""
    update_us = dict(plan.time.parts).get("update", 0.0)
    for pp_rank in range(plan.mesh.pp):
        points = memory_over_time(plan, pp_rank)
        starts = (*plan.timeline.start_us[pp_rank], plan.time.step_us - update_us)
        ends = (*plan.timeline.end_us[pp_rank], plan.time.step_us)
        levels = [(0.0, points[0].total_bytes - points[0].activations - points[0].work)]
        for point, start, end in zip(points, starts, ends, strict=True):
            levels += [(start, point.total_bytes), (end, point.after_bytes)]
        yield from (_counter("allocated, GiB", pp_rank, at, size / GIB) for at, size in levels)


def _us(time: float) -> float:
    return round(time, 3)


def _slice(name: str, category: str, pid: int, tid: int, start: float, end: float, **about: Any) -> Event:
    begin = _us(start)
    event: Event = {"name": name, "cat": category, "ph": "X", "pid": pid, "tid": tid, "ts": begin}
    return {**event, "dur": _us(_us(end) - begin), "args": about}


def _counter(name: str, pid: int, at: float, value: float) -> Event:
    place = {"pid": pid, "tid": COMPUTE, "ts": _us(at)}
    return {"name": name, "cat": "memory", "ph": "C", **place, "args": {"GiB": round(value, 6)}}


def _meta(name: str, pid: int, tid: int = COMPUTE, /, **about: Any) -> Event:
    return {"name": name, "ph": "M", "pid": pid, "tid": tid, "args": about}


def _lane(pid: int, tid: int, name: str) -> Sequence[Event]:
    return _meta("thread_name", pid, tid, name=name), _meta("thread_sort_index", pid, tid, sort_index=tid)
