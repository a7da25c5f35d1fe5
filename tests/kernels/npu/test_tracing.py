"""Traces of real rank programs on the virtual NPU, beside their plans."""

from typing import Any

import attrs
import pytest

from ridgeline.core.flops import training_flops_per_token
from ridgeline.core.job import Batch, Job
from ridgeline.core.model import Attention, Block, FeedForward, Mlp, ModelSpec, Moe, Repeat
from ridgeline.parallel.plan import Plan, plan
from ridgeline.parallel.traced import Comparison, Trace, compare
from tests.kernels.npu.training import on_npu
from tests.parity.small import job_of

MIXER = Attention(heads=16, kv_heads=8, head_dim=128, qk_norm=True)
MOE = Moe(experts=8, topk=2, ffn_hidden=1536, aux_loss=0.01, shared_ffn=1024)
pytestmark = pytest.mark.usefixtures("virtual_npu")

WITHIN = 0.02
"""What a plan may be off by: its peaks bound what the tensors of an operation take, not each moment in it."""

JOBS = {
    "tp2 sp": (Mlp(ffn_hidden=5632), 1, 2, {"layout__tp": 2, "layout__sp": True}),
    "tp2 sp pp2": (Mlp(ffn_hidden=5632), 1, 4, {"layout__tp": 2, "layout__sp": True, "layout__pp": 2}),
    "pp2 vpp2": (
        Mlp(ffn_hidden=5632),
        2,
        4,
        {"layout__pp": 2, "layout__vpp": 2},
    ),
    "ep2": (MOE, 1, 2, {"layout__ep": 2}),
}


def job_to_trace(feed_forward: FeedForward, world_size: int, fields: dict[str, Any]) -> Job:
    """A job of 4 layers whose tensors are gigabytes, beside which templates of masks and the like are small."""
    block = Block(mixer=MIXER, feed_forward=feed_forward)
    model = ModelSpec(vocab_size=32000, hidden=2048, max_position=4096, blocks=(Repeat(block=block, count=4),))
    job = job_of(model, world_size=world_size, precision="bf16", memory__distributed_optimizer=True, **fields)
    dp = world_size // (job.layout.tp * job.layout.pp)
    return on_npu(attrs.evolve(job, batch=Batch(seq_len=4096, mbs=1, gbs=dp * (4 if job.layout.pp > 1 else 1))))


def traced(name: str) -> tuple[Plan, Trace, Comparison]:
    """One of the jobs, planned and traced."""
    from ridgeline.models.program import lower
    from ridgeline.models.runtime.tracing.trace import trace_rank

    feed_forward, rank, world_size, fields = JOBS[name]
    planned = plan(job_to_trace(feed_forward, world_size, fields))
    trace = trace_rank(lower(planned, rank))
    return planned, trace, compare(planned, trace)


@pytest.mark.parametrize("name", JOBS)
def test_a_plan_holds_and_sends_what_the_program_does(name: str) -> None:
    """Live bytes at the peak and of each component, and every collective with its group, size and count."""
    planned, trace, comparison = traced(name)
    rows = "\n".join(map(str, (*comparison.memory, *comparison.actions)))
    assert comparison.differing == ()
    for row in comparison.memory:
        if row.planned and row.component != "activations, work, buffers":
            assert row.traced == pytest.approx(row.planned, rel=0.005), row  # buffers are padded, shards are not
    # Exchanged tensors that an earlier step's cycles of references may hold: planned, yet not there in a first step.
    left = comparison.actions[0][0].buffers if planned.job.layout.vpp > 1 else 0
    told = f"{comparison.error:+.2%}\n{rows}\n{trace.peak}"
    assert comparison.planned_bytes >= (1 - WITHIN) * comparison.traced_bytes, told
    assert comparison.planned_bytes - left <= (1 + WITHIN) * comparison.traced_bytes, told
    if planned.mesh.pp == 1:  # then a rank's share of the model's FLOPs is a number of the model's own
        share = training_flops(planned) / planned.mesh.world_size
        assert trace.flops == pytest.approx(share, rel=0.01)


def training_flops(planned: Plan) -> float:
    """Of a step, with attention over the whole rectangle; of attention's backward what kernels do, five products."""
    job = planned.job
    mixer = job.model.blocks[0].block.mixer
    assert isinstance(mixer, Attention)
    tokens = job.batch.gbs * job.batch.seq_len
    again = 2 * job.model.num_layers * mixer.heads * mixer.head_dim * job.batch.seq_len
    return tokens * (training_flops_per_token(job.model, job.batch.seq_len, attention="full") + again)
