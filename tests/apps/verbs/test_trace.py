"""``ridgeline trace``: what it refuses, and what it prints of a trace."""

import json

import pytest

from ridgeline.apps.cli import run as cli
from ridgeline.apps.reports.trace import rests_on, trace_data
from ridgeline.apps.reports.traced_events import events_text
from ridgeline.kernels.npu.virtual import install
from ridgeline.parallel.plan import plan
from ridgeline.parallel.traced import Sample, Trace, TracedAction, TracedOp, compare
from tests.parallel.examples import MOE, job_of

TOKENS = ["qwen2.5-7b", "--cluster", "atlas-800t-a2"]


def told(capsys, *tokens) -> str:
    """The message of a trace that is refused."""
    assert cli(["trace", *tokens]) != 0
    return capsys.readouterr().err


def test_ranks_and_devices_are_checked_together(capsys):
    error = told(capsys, "qwen2.5-7b", "--cluster", "cpu", "--cluster.devices-per-node", "2", "--rank", "2")
    assert "--rank=2: must be 0 .. 1" in error
    assert "cluster.chip.device='cpu'" in error


def test_what_the_runtime_cannot_run_is_named(capsys):
    assert "memory.swap_optimizer=True" in told(capsys, *TOKENS, "--memory.swap-optimizer", "true")


def test_a_machine_without_torch_npu_is_told_what_to_do(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(install, "BESIDE", tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert "needs torch_npu, which is not installed" in told(capsys, *TOKENS)


def test_a_machine_without_a_compiler_is_told_what_to_do(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    error = told(capsys, *TOKENS)
    assert "C compiler" in error or "torch_npu" in error


@pytest.fixture(scope="module")
def traced():
    planned = plan(job_of(MOE, world_size=1))
    points = planned.schedule.ranks[0]
    actions = [TracedAction(str(action), 2**30, 2**20, "mlp") for action in points]
    trace = Trace(
        rank=0,
        actions=(*actions, TracedAction("update", 2**29, 2**20, "schedule")),
        peak=(("params", 2**29), ("mlp", 2**29)),
        ops=(TracedOp("forward", "mlp", "aten::mm", 2, 100, 50),),
        collectives=(),
        samples=(Sample(0, "0F0", "mlp", 2**20), Sample(3, "0B0", "norm", 2**30), Sample(5, "update", "mlp", 2**20)),
        reads=(("step.py:1 read", 3),),
        seconds=1.0,
    )
    return planned, trace


def test_data_holds_both_peaks_and_every_operation(traced):
    planned, trace = traced
    data = trace_data(planned, trace, compare(planned, trace))
    read = json.loads(json.dumps(data))
    assert read["peak"]["traced_bytes"] == 2**30
    assert read["flops"] == 100
    assert read["ops"] == [trace.ops[0]._asdict()]


def test_what_was_assumed_is_said(traced):
    sentences = " ".join(rests_on(*traced))
    assert "equal shares" in sentences
    assert "step.py:1 read (3)" in sentences


def test_events_are_slices_and_a_counter(traced):
    """Memory at every sample; an action from its first operation to the next one's."""
    events = json.loads(events_text(traced[1]))
    assert [event["args"]["GiB"] for event in events if event["ph"] == "C"] == [0.000977, 1.0, 0.000977]
    slices = {
        event["name"]: (event["ts"], event["dur"]) for event in events if event["ph"] == "X" and event["tid"] == 0
    }
    assert slices == {"0F0": (0, 3), "0B0": (3, 2), "update": (5, 0)}
