"""A plan holds what was asked for, says what it changed and assumed, and comes fast without torch."""

import json
import subprocess
import sys
import time

import attrs
import pytest

from ridgeline.core.errors import PlanError
from ridgeline.core.job import Batch, Job, Memory
from ridgeline.core.layout import Layout
from ridgeline.models.zoo import model_preset
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.plan import plan, plan_data
from tests.parallel.examples import DENSE, MOE, changed, dense_model, job_of

SEVEN_B = Job(
    model=model_preset("qwen2.5-7b"),
    cluster=cluster_preset("atlas-800t-a2"),
    batch=Batch(seq_len=4096, gbs=64),
    layout=Layout(pp=2),
)
LARGE = Job(
    model=model_preset("qwen3-235b-a22b"),
    cluster=cluster_preset("atlas-800t-a2", 128),
    batch=Batch(seq_len=4096, gbs=2048),
    layout=Layout(tp=4, sp=True, pp=8, ep=8, stages=(11, 12, 12, 12, 12, 12, 12, 11)),
)


def test_a_repair_is_in_the_plans_job_and_among_its_warnings():
    planned = plan(job_of(DENSE, layout__pp=2, layout__vpp=2, comm__p2p="batched"))
    assert planned.job.comm.p2p == "overlapped"
    assert any(warning.startswith("comm.p2p: ") for warning in planned.warnings)


def test_a_plan_of_a_plans_job_is_the_same_plan():
    planned = plan(job_of(MOE, layout__ep=4, layout__pp=2))
    assert plan(planned.job) == planned


def test_faults_of_every_kind_come_in_one_error():
    with pytest.raises(PlanError) as caught:
        plan(job_of(attrs.evolve(DENSE, mtp=1), layout__cp=2, layout__tp=3, batch__seq_len=30))
    text = str(caught.value)
    assert "layout.tp=3: must divide heads=8" in text
    assert "layout.cp=2: the multi-token-prediction loss" in text
    assert "batch.seq_len=30: must be a multiple of 2*cp=4" in text


@pytest.mark.parametrize(
    ("job", "warning"),
    [
        (job_of(dense_model(vocab_size=130), layout__tp=4), "the vocabulary of 130 is padded by 2 rows"),
        (job_of(DENSE, layout__pp=8, batch__gbs=4), "num_microbatches=4 is below pp=8"),
        (job_of(DENSE, layout__tp=8, batch__gbs=4), "memory.distributed_optimizer has no effect with dp*cp=1"),
        (job_of(DENSE, layout__tp=8, batch__gbs=4, cluster__devices_per_node=4, cluster__nodes=2), "layout.tp=8 spans"),
        (changed(SEVEN_B, model=dense_model(head_dim=1024, max_position=4096)), "head_dim=1024: must be <= 768"),
    ],
)
def test_a_warning_is_given_where_it_is_due(job, warning):
    assert any(warning in line for line in plan(job).warnings)


def test_a_plans_timeline_lets_no_stage_start_before_its_transfer_has_arrived():
    slow = job_of(DENSE, layout__pp=4, batch__gbs=16, cluster__intra__bandwidth=1e6)
    planned = plan(slow)
    arrived = {}
    for actions, ends in zip(planned.schedule.ranks, planned.timeline.end_us, strict=True):
        arrived |= {(stage, mb): end for (stage, kind, mb), end in zip(actions, ends, strict=True) if kind == "F"}
    for actions, starts in zip(planned.schedule.ranks, planned.timeline.start_us, strict=True):
        for (stage, kind, mb), start in zip(actions, starts, strict=True):
            if kind == "F" and stage:
                assert start >= arrived[stage - 1, mb] + planned.time.p2p_us[stage - 1] > arrived[stage - 1, mb]
    assert planned.timeline.makespan_us < planned.time.step_us


def test_an_ordinary_job_has_no_warnings():
    assert plan(job_of(DENSE, memory=Memory())).warnings == ()


def test_chip_peak_and_conventions_are_among_the_assumptions():
    text = "\n".join(plan(SEVEN_B).assumptions)
    assert "chip 910B2: peak 353.9 TFLOP/s divides MFU (atlas-800t-a2 names no chip; 910B2 is taken because" in text
    assert "mfu_full counts attention over the whole sequence" in text
    assert "mfu_causal" in text


def test_a_plan_as_data_is_json_and_holds_the_numbers():
    planned = plan(SEVEN_B)
    data = json.loads(json.dumps(plan_data(planned)))
    assert data["time"]["mfu_full"] == planned.time.mfu_full
    assert data["memory"][1]["total_bytes"] == planned.memory[1].total_bytes
    assert data["stages"] == [list(range(14)), list(range(14, 28))]
    assert sum(data["time"]["parts_us"].values()) == pytest.approx(planned.time.step_us)
    assert data["chip"] == {"name": "910B2", "cube_flops": planned.job.cluster.chip.cube_flops}


@pytest.mark.parametrize(("job", "limit_ms"), [(SEVEN_B, 15), (LARGE, 100)])
def test_a_plan_comes_in_milliseconds(job, limit_ms):
    def milliseconds():
        start = time.process_time()
        plan(job)
        return (time.process_time() - start) * 1e3

    assert min(milliseconds() for _ in range(5)) < limit_ms


def test_planning_loads_neither_torch_nor_numpy():
    code = (
        "import sys, ridgeline; ridgeline.plan(ridgeline.preset('qwen2.5-7b'));"
        "print(*{'torch', 'numpy', 'megatron', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
