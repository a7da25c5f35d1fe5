"""Planned memory: what is kept is what Megatron-core keeps, totals are the published ones, and nothing is lost."""

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.job import Batch, FullRecompute, Job, Memory, Precision, SelectiveRecompute
from ridgeline.core.layout import Layout
from ridgeline.models.zoo import model_preset
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.ops import sizes_of
from ridgeline.parallel.plan import plan
from ridgeline.parallel.shards import rank_params
from ridgeline.parallel.simulate import peak_in_flight
from ridgeline.parallel.work import kept_bytes, stage_work
from tests.parallel.examples import dense_model, job_of, moe_model

GIB = 2**30
SIZES = {"batch__seq_len": 128, "batch__gbs": 8, "batch__mbs": 2}
DENSE = dense_model(layers=4, hidden=128, ffn=352, vocab_size=512)
NORMED = dense_model(layers=4, hidden=128, ffn=352, vocab_size=512, attention={"qk_norm": True}, kv_heads=8)
MOE = moe_model(layers=4, hidden=128, ffn=96, experts=8, vocab_size=512)


def recomputed(*modules):
    return Memory(recompute=SelectiveRecompute(modules=modules))


FORWARDS = {
    "dense": job_of(DENSE, world_size=1, **SIZES),
    "dense, fp32": job_of(DENSE, world_size=1, **SIZES, precision=Precision(params="fp32")),
    "norms of q and k": job_of(NORMED, world_size=1, **SIZES),
    "tp2": job_of(DENSE, world_size=2, **SIZES, layout__tp=2),
    "tp2 sp": job_of(DENSE, world_size=2, **SIZES, layout__tp=2, layout__sp=True),
    "core_attn": job_of(DENSE, world_size=1, **SIZES, memory=recomputed("core_attn")),
    "mlp": job_of(DENSE, world_size=1, **SIZES, memory=recomputed("mlp")),
    "layernorm": job_of(DENSE, world_size=1, **SIZES, memory=recomputed("layernorm")),
    "uniform": job_of(DENSE, world_size=1, **SIZES, memory=Memory(recompute=FullRecompute(num_layers=2))),
    "block": job_of(DENSE, world_size=1, **SIZES, memory=Memory(recompute=FullRecompute(method="block", num_layers=3))),
    "experts": job_of(MOE, world_size=1, **SIZES),
    "experts, ep2": job_of(MOE, world_size=2, **SIZES, layout__ep=2),
    "experts, ep2, all-gather": job_of(MOE, world_size=2, **SIZES, layout__ep=2, comm__moe_dispatcher="allgather"),
    "experts recomputed": job_of(MOE, world_size=1, **SIZES, memory=recomputed("moe")),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_keeps_what_is_planned_and_never_more(ranks, name):
    from tests.parallel import saved

    job = FORWARDS[name]
    planned = plan(job)
    (work,) = stage_work(planned.job, planned.stages)
    kept = sum(kept_bytes(run, sizes_of(job)) for run in work.runs)
    measured = ranks.run(saved.saved_bytes, job.cluster.world_size, job)
    mean = sum(measured) / len(measured)  # experts get unequal shares
    print(name, kept, measured, kept / mean - 1)
    assert 0 <= kept / mean - 1 <= 0.03
