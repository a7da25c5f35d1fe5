"""Traces of torch.profiler, read."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.apps.profiles.intervals import length, union, within
from ridgeline.apps.profiles.torch_trace import Event, own_times, read
from ridgeline.core.errors import SpecError

SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda s: (s[0], s[0] + s[1])), max_size=8)


@given(SPANS, st.integers(0, 30), st.integers(1, 12))
def test_unions_count_every_moment_once(spans: list[tuple[int, int]], low: int, size: int) -> None:
    """The length of a union within bounds is the number of unit steps that some span covers there."""
    covered = sum(any(begin <= t < end for begin, end in spans) for t in range(low, low + size))
    assert length(within(union(spans), (low, low + size))) == covered


@given(st.recursive(st.just([]), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=12))
def test_own_times_add_up(tree: list[object]) -> None:
    """However calls nest, their own times make the time of the outermost."""
    events: list[Event] = []

    def call(children: list, begin: float) -> float:
        end = begin + 1.0
        for child in children:
            end = call(child, end) + 1.0
        events.append(Event(name="op", ph="X", pid=1, tid=1, ts=begin, dur=end - begin))
        return end

    total = call(tree, 0.0)
    own = [time for _, time in own_times(events)]
    assert sum(own) == pytest.approx(total)
    assert min(own) >= 1.0


def _event(cat: str, name: str, begin: float, end: float, tid: int = 1) -> dict[str, object]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": begin, "dur": end - begin}


def test_where_a_step_goes(tmp_path: Path) -> None:
    """Compute, communication beside it and alone, and the rest; kernels of a card speak for it where there are any."""
    step = _event("user_annotation", "ProfilerStep#4", 0, 100)
    host = [_event("cpu_op", "aten::mm", 10, 40), _event("cpu_op", "c10d::allreduce_", 40, 60)]
    sending = _event("user_annotation", "gloo:all_reduce", 30, 60, tid=2)
    path = tmp_path / "rank3.1.pt.trace.json"
    path.write_text(json.dumps({"traceEvents": [step, *host, sending]}))
    (time,) = read(path, rank=3).steps
    found = (time.step, time.total_us, time.compute_us, time.communication_us, time.exposed_us, time.idle_us)
    assert found == (4, 100, 30, 30, 20, 50)
    kernels = [_event("kernel", "gemm", 20, 30, tid=7), _event("kernel", "ncclKernel_AllReduce", 25, 45, tid=8)]
    path.write_text(json.dumps({"traceEvents": [step, *host, *kernels]}))
    profile = read(path, rank=3)
    assert [(op.name, op.total_us) for op in profile.ops] == [("ncclKernel_AllReduce", 20), ("gemm", 10)]
    assert (profile.steps[0].compute_us, profile.steps[0].exposed_us, profile.steps[0].idle_us) == (10, 15, 75)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no trace"), ('{"traceEvents": []}', "holds no step"), ('{"traceEvents": 1}', "no trace")],
)
def test_what_is_no_trace(tmp_path: Path, text: str, message: str) -> None:
    """A file cut short, or without a step, is named."""
    path = tmp_path / "rank0.1.pt.trace.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=message):
        read(path, rank=0)
