"""The planned collectives are those that ranks run, by kind, group, bytes and number."""

from collections import Counter

import pytest

from ridgeline.core.job import Comm, FullRecompute, Lora, Memory, Precision, Pretraining, SelectiveRecompute
from ridgeline.parallel.mesh import rank_coords
from ridgeline.parallel.plan import plan
from tests.parallel.examples import dense_model, indexed_model, job_of, moe_model

SMALL = {"world_size": 4, "batch__gbs": 4, "batch__seq_len": 16}
DENSE = dense_model(layers=4)
NORMED = dense_model(layers=4, attention={"qk_norm": True, "qkv_bias": True, "out_bias": True}, kv_heads=2)
GATED = dense_model(layers=2, attention={"gate": "head"})
TIED = dense_model(layers=4, tied_embeddings=True)
MOE = moe_model(layers=4, experts=4, dense_layers=1)
BALANCED = moe_model(layers=2, experts=4, mtp=2, moe={"aux_loss": 0.1, "aux_per_sequence": True, "zero_experts": 2})
SHARED = moe_model(layers=2, experts=4, moe={"shared_ffn": 48})
INDEXED = indexed_model(layers=2)
PLAIN = Memory(distributed_optimizer=False)

JOBS = {
    "dp4": job_of(DENSE, **SMALL),
    "dp4, all-reduce": job_of(DENSE, **SMALL, memory=PLAIN),
    "tp2, overlapped": job_of(
        DENSE, **SMALL, layout__tp=2, comm=Comm(overlap_grad_reduce=True, overlap_param_gather=True)
    ),
    "tp2 sp pp2": job_of(NORMED, **SMALL, layout__tp=2, layout__sp=True, layout__pp=2),
    "tp4 of 2 kv heads, sp": job_of(NORMED, **SMALL, layout__tp=4, layout__sp=True),
    "tp2, gates of heads": job_of(GATED, **SMALL, layout__tp=2),
    "tp2 sp, gates of heads": job_of(GATED, **SMALL, layout__tp=2, layout__sp=True),
    "pp2 vpp2, tied": job_of(TIED, **SMALL, layout__pp=2, layout__vpp=2),
    "pp4, tied, all-reduce, bf16": job_of(
        TIED, **SMALL, layout__pp=4, memory=PLAIN, precision=Precision(params="bf16", grads="bf16")
    ),
    "tp2, full recompute": job_of(DENSE, **SMALL, layout__tp=2, memory=Memory(recompute=FullRecompute(num_layers=2))),
    "tp2 sp, block recompute": job_of(
        DENSE,
        **SMALL,
        layout__tp=2,
        layout__sp=True,
        memory=Memory(recompute=FullRecompute(method="block", num_layers=1)),
    ),
    "tp2 sp, mlp recomputed": job_of(
        DENSE, **SMALL, layout__tp=2, layout__sp=True, memory=Memory(recompute=SelectiveRecompute(modules=("mlp",)))
    ),
    "cp4 ring": job_of(NORMED, **SMALL, layout__cp=4),
    "cp2 ulysses, tp2 sp": job_of(
        NORMED, **SMALL, layout__cp=2, layout__cp_algorithm="ulysses", layout__tp=2, layout__sp=True
    ),
    "cp4 hybrid, per token": job_of(
        NORMED,
        **SMALL,
        layout__cp=4,
        layout__cp_algorithm="hybrid",
        layout__ulysses=2,
        objective=Pretraining(per_token=True),
    ),
    "cp2 ring pp2, attention recomputed": job_of(
        DENSE,
        **SMALL,
        layout__cp=2,
        layout__pp=2,
        memory=Memory(recompute=SelectiveRecompute(modules=("core_attn",))),
    ),
    "ep4": job_of(MOE, **SMALL, layout__ep=4),
    "ep2 pp2, all-gather": job_of(MOE, **SMALL, layout__ep=2, layout__pp=2, comm=Comm(moe_dispatcher="allgather")),
    "ep2 etp2 tp2 sp, all-gather": job_of(
        MOE,
        **SMALL,
        layout__ep=2,
        layout__etp=2,
        layout__tp=2,
        layout__sp=True,
        comm=Comm(moe_dispatcher="allgather"),
    ),
    "etp2 tp2 sp": job_of(MOE, **SMALL, layout__etp=2, layout__tp=2, layout__sp=True),
    "tp2, adapters": job_of(DENSE, **SMALL, layout__tp=2, adapter=Lora(rank=3)),
    "tp2 sp pp2, adapters": job_of(TIED, **SMALL, layout__tp=2, layout__sp=True, layout__pp=2, adapter=Lora(rank=3)),
    "tp2 sp, adapters recomputed": job_of(
        NORMED,
        **SMALL,
        layout__tp=2,
        layout__sp=True,
        memory=Memory(recompute=FullRecompute()),
        adapter=Lora(rank=3, targets=("linear_proj", "linear_fc1")),
    ),
    "tp2 sp ep2, adapters": job_of(SHARED, **SMALL, layout__tp=2, layout__sp=True, layout__ep=2, adapter=Lora(rank=3)),
    "tp2 sp, further tokens, adapters": job_of(BALANCED, **SMALL, layout__tp=2, layout__sp=True, adapter=Lora(rank=3)),
    "pp2 ep2, further tokens": job_of(BALANCED, **SMALL, batch__mbs=2, layout__ep=2, layout__pp=2),
    "ep2 tp2 sp, balanced": job_of(BALANCED, **SMALL, batch__mbs=2, layout__ep=2, layout__tp=2, layout__sp=True),
    "ep2 tp2 sp, balanced, moe recomputed": job_of(
        BALANCED,
        **SMALL,
        layout__ep=2,
        layout__tp=2,
        layout__sp=True,
        memory=Memory(recompute=SelectiveRecompute(modules=("moe",))),
    ),
    "etp2 tp2 sp, columns": job_of(
        MOE,
        **SMALL,
        layout__etp=2,
        layout__tp=2,
        layout__sp=True,
        comm=Comm(moe_dispatcher="alltoall_seq"),
    ),
    "ep4, shared experts beside": job_of(
        SHARED, **SMALL, layout__ep=4, comm=Comm(moe_dispatcher="allgather", moe_overlap=("shared_experts",))
    ),
    "ep2 tp2 sp, moe recomputed, all-reduce": job_of(
        MOE,
        **SMALL,
        layout__ep=2,
        layout__tp=2,
        layout__sp=True,
        memory=Memory(recompute=SelectiveRecompute(modules=("moe",)), distributed_optimizer=False),
    ),
    "tp2 sp, indexed": job_of(INDEXED, **SMALL, layout__tp=2, layout__sp=True),
    "tp2 sp, indexed, the indexer left alone": job_of(
        INDEXED, **SMALL, layout__tp=2, layout__sp=True, objective__indexer_loss=0.0
    ),
    "tp2 sp, shared indexers": job_of(indexed_model(layers=2, shares=True), **SMALL, layout__tp=2, layout__sp=True),
    "tp2 sp, indexed, full recompute": job_of(
        INDEXED, **SMALL, layout__tp=2, layout__sp=True, memory=Memory(recompute=FullRecompute(num_layers=1))
    ),
    "tp2 sp pp2, indexed, core_attn": job_of(
        INDEXED,
        **SMALL,
        layout__tp=2,
        layout__sp=True,
        layout__pp=2,
        memory=Memory(recompute=SelectiveRecompute(modules=("core_attn",))),
    ),
}


def planned_of(planned, pp_rank):
    counts = Counter()
    for row in planned.collectives:
        if row.counts[pp_rank]:
            group_size = 2 if row.kind == "p2p" else row.group_size  # of a ring, but seen between two of its ranks
            counts[row.kind, group_size, row.size_bytes] += row.counts[pp_rank]
    return counts


def split(counts):
    """By kind, group and bytes; all-to-alls, whose bytes follow the tokens, by group alone."""
    exact, loose = Counter(), Counter()
    for (kind, group_size, size_bytes), count in counts.items():
        if kind == "all_to_all":
            loose[kind, group_size] += count
        else:
            exact[kind, group_size, size_bytes] += count
    return exact, loose


@pytest.mark.parametrize("name", JOBS)
def test_ranks_run_the_planned_collectives(ranks, name):
    planned = plan(JOBS[name])
    for rank, seen in enumerate(ranks.run("tests.parallel.traced:collectives_of_a_step", 4, planned.job)):
        expected = planned_of(planned, rank_coords(rank, planned.mesh).pp_rank)
        assert split(Counter(seen)) == split(expected)
