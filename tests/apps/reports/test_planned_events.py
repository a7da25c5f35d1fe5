"""A step as a trace: the plan's own times and memory, in events that every reader of the format accepts."""

import itertools
import json
import math
from collections import defaultdict

import pytest

from ridgeline.apps.cli import run as cli
from ridgeline.apps.reports.planned_events import trace_events, trace_text
from ridgeline.core.transforms import with_layout
from ridgeline.models.jobs import preset
from ridgeline.parallel.dataflow import flow_of
from ridgeline.parallel.plan import plan

LAYOUTS = (
    {"tp": 8, "pp": 1},
    {"tp": 1, "sp": False, "pp": 8},
    {"tp": 2, "pp": 4, "vpp": 2},
    {"tp": 2, "pp": 4, "schedule": "zb_h1"},
)
EPSILON_US = 0.0011  # times are rounded to a nanosecond, both ends of a slice


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def planned(request):
    return plan(with_layout(**request.param)(preset("llama2-7b")))


@pytest.fixture(scope="module")
def events(planned):
    return json.loads(trace_text(planned))


def of(events, phase, **fields):
    return [event for event in events if event["ph"] == phase and fields.items() <= event.items()]


def test_the_fields_are_those_of_the_format(planned, events):
    """Each phase has the fields it needs; times are plain decimals; what the file holds is what the events are."""
    assert events == trace_events(planned)
    wanted = {"X": {"ts", "dur"}, "C": {"ts", "args"}, "M": {"args"}, "s": {"ts", "id", "cat"}, "f": {"ts", "id", "bp"}}
    for event in events:
        assert {"name", "ph", "pid", "tid"} | wanted[event["ph"]] <= event.keys()
        for time in (event.get("ts", 0.0), event.get("dur", 0.0)):
            assert time >= 0
            assert math.isfinite(time)
            assert "e" not in json.dumps(time)
    named = {event["pid"] for event in of(events, "M", name="process_name")}
    lanes = {(event["pid"], event["tid"]) for event in of(events, "M", name="thread_name")}
    assert named == {event["pid"] for event in events} == set(range(planned.mesh.pp))
    assert lanes >= {(event["pid"], event["tid"]) for event in of(events, "X")}


def test_each_action_runs_when_the_plan_says(planned, events):
    """All actions of each rank under their names, at the timeline's times."""
    for pp_rank, actions in enumerate(planned.schedule.ranks):
        slices = of(events, "X", pid=pp_rank, tid=0)
        assert [event["name"] for event in slices] == [f"{stage}{kind}{batch}" for stage, kind, batch in actions]
        assert [event["ts"] for event in slices] == pytest.approx(planned.timeline.start_us[pp_rank], abs=EPSILON_US)
        ends = [event["ts"] + event["dur"] for event in slices]
        assert ends == pytest.approx(planned.timeline.end_us[pp_rank], abs=EPSILON_US)
        assert [event["args"]["microbatch"] for event in slices] == [batch for _, _, batch in actions]
        assert {event["args"]["stage"] for event in slices} == set(planned.stages.owned_by(pp_rank))


def test_the_step_ends_with_the_plan(planned, events):
    """The last slice of each rank is the optimizer's and ends when the step does."""
    for pp_rank in range(planned.mesh.pp):
        last = max(of(events, "X", pid=pp_rank), key=lambda event: event["ts"] + event["dur"])
        assert last["name"] == "optimizer"
        assert last["ts"] + last["dur"] == pytest.approx(planned.time.step_us, abs=EPSILON_US)


def test_slices_of_a_lane_follow_each_other(events):
    """None begins before the one before it on its lane has ended: readers nest or drop what overlaps."""
    lanes = defaultdict(list)
    for event in of(events, "X"):
        lanes[event["pid"], event["tid"]].append(event)
    for slices in lanes.values():
        slices.sort(key=lambda event: event["ts"])
        for before, after in itertools.pairwise(slices):
            assert round(before["ts"] + before["dur"], 3) <= after["ts"]


def test_each_transfer_has_an_arrow(planned, events):
    """From the transfer's slice on its sender to the action on its receiver that waits for it, forward in time."""
    starts, finishes = of(events, "s"), of(events, "f")
    crossing = [boundary for boundary in flow_of(planned.schedule).hop if boundary >= 0]
    assert len(starts) == len({event["id"] for event in starts}) == len(finishes) == len(crossing)
    assert {event["id"] for event in starts} == {event["id"] for event in finishes}
    taken = {event["id"]: event for event in finishes}
    slices = {(event["pid"], event["tid"], event["ts"]): event for event in of(events, "X")}
    for start in starts:
        finish = taken[start["id"]]
        sent = slices[start["pid"], start["tid"], start["ts"]]
        taker = slices[finish["pid"], 0, finish["ts"]]
        assert sent["args"]["to"] == f"pp rank {finish['pid']}" != f"pp rank {start['pid']}"
        assert sent["args"]["for"] == taker["name"]
        assert sent["args"]["bytes"] > 0
        assert sent["dur"] > 0
        assert sent["ts"] + sent["dur"] <= taker["ts"] + EPSILON_US


def test_memory_peaks_where_the_plan_does(planned, events):
    """The counter's highest value is the plan's peak, during the action that the plan names."""
    for rank in planned.memory:
        levels = of(events, "C", pid=rank.pp_rank)
        assert [event["ts"] for event in levels] == sorted(event["ts"] for event in levels)
        worst = max(levels, key=lambda event: event["args"]["GiB"])
        assert worst["args"]["GiB"] == pytest.approx(rank.allocated_bytes / 2**30, abs=1e-6)
        names = {event["name"] for event in of(events, "X", pid=rank.pp_rank, ts=worst["ts"])}
        assert rank.peak_at in names or (rank.peak_at == "update" and "optimizer" in names)
        assert levels[-1]["args"]["GiB"] == pytest.approx(rank.after_step_bytes / 2**30, abs=1e-6)


def test_the_command_writes_the_file(tmp_path, capsys):
    """And a job that cannot be planned writes none."""
    path = tmp_path / "step.json"
    assert cli(["plan", "llama2-7b", "--pp", "3", "--trace", str(path)]) == 2
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()
    assert cli(["plan", "llama2-7b", "--pp", "4", "--trace", str(path)]) == 0
    assert capsys.readouterr().out == f"written to {path}\n"
    assert {event["pid"] for event in json.loads(path.read_text())} == {0, 1, 2, 3}
