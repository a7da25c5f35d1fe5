"""No operation is planned above the chip's roof, and what is under it adds up to the plan's own FLOPs and time."""

import pytest

from ridgeline.core.flops import forward_flops_per_token
from ridgeline.core.transforms import with_layout
from ridgeline.models.jobs import preset
from ridgeline.parallel.plan import plan
from ridgeline.parallel.roofline import op_points, roof_flops
from ridgeline.parallel.work import stage_work

JOBS = {
    "dense": with_layout(tp=2, pp=2)(preset("llama2-7b")),
    "moe": with_layout(tp=2, pp=2, ep=4)(preset("qwen3-30b-a3b", nodes=2)),
    "alone": preset("qwen3-0.6b", cluster="cpu"),
}


@pytest.fixture(scope="module", params=JOBS.values(), ids=JOBS)
def made(request):
    planned = plan(request.param)
    return planned, op_points(planned.job, mesh=planned.mesh, work=stage_work(planned.job, planned.stages))


def test_nothing_is_above_the_roof(made):
    """Neither of the cube nor of the memory."""
    planned, points = made
    chip = planned.job.cluster.chip
    for point in points:
        assert point.moved_bytes > 0
        assert point.flops_per_s <= roof_flops(point.intensity, chip)
        assert point.bytes_per_s <= chip.hbm_bandwidth


def test_the_flops_are_the_model_s(made):
    """All ranks' forwards of a microbatch together: those of the model, as its formula counts them."""
    planned, points = made
    job, mesh = planned.job, planned.mesh
    ranks = mesh.tp * mesh.cp
    flops = sum(point.times * point.flops for point in points) * ranks
    tokens = job.batch.mbs * job.batch.seq_len
    expected = forward_flops_per_token(job.model, job.batch.seq_len, attention="causal") * tokens
    assert flops == pytest.approx(expected, rel=1e-3)  # the padding of the vocabulary is not the model's


def test_the_time_is_the_plan_s():
    """Where nothing is sent, the operations' times add up to the forward's."""
    planned = plan(JOBS["alone"])
    points = op_points(planned.job, mesh=planned.mesh, work=stage_work(planned.job, planned.stages))
    assert sum(point.times * point.us for point in points) == pytest.approx(sum(planned.time.forward_us))
