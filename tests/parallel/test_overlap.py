"""What of tokens' ways to experts is hidden: never more than travels, nor than runs beside it."""

import attrs
import pytest

from ridgeline.core.job import Comm
from ridgeline.parallel.check import job_problems
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.costs import costs_of, op_parts
from ridgeline.parallel.no_effect import no_effect
from ridgeline.parallel.of_job import mesh_of
from ridgeline.parallel.ops import block_ops, sizes_of
from ridgeline.parallel.overlap import hidden_us
from ridgeline.parallel.plan import plan
from tests.parallel.examples import job_of, moe_model

MODEL = moe_model(layers=2, moe={"shared_ffn": 96, "shared_gate": True})
ALL = ("permutation", "shared_experts", "weight_gradients")


def planned_of(*, overlap=(), dispatcher="alltoall", speed=1e-3):
    """A job of two layers over ep=4 on NPUs, whose links are ``speed`` times as fast."""
    job = job_of(MODEL, world_size=4, batch__gbs=4, batch__seq_len=128, layout__ep=4)
    cluster = cluster_preset("atlas-800t-a2", devices_per_node=4)
    cluster = attrs.evolve(cluster, intra=attrs.evolve(cluster.intra, bandwidth=cluster.intra.bandwidth * speed))
    return attrs.evolve(job, cluster=cluster, comm=Comm(moe_dispatcher=dispatcher, moe_overlap=overlap))


def layer_of(job):
    """The operations of its layers, and what they cost."""
    return block_ops(job.model.blocks[0].block, sizes_of(job)), costs_of(job, mesh_of(job))


@pytest.mark.parametrize("dispatcher", ["alltoall", "alltoall_seq", "allgather"])
def test_each_thing_beside_hides_more_and_never_more_than_travels(dispatcher):
    steps, experts = [], []
    for count in range(len(ALL) + 1):
        time = plan(planned_of(overlap=ALL[:count], dispatcher=dispatcher)).time
        steps.append(time.step_us)
        experts.append(dict(time.parts).get("ep", 0.0))
    assert steps == sorted(steps, reverse=True)
    assert experts[-1] >= 0
    assert steps[0] - steps[-1] == pytest.approx(experts[0] - experts[-1])
    assert (steps[1] < steps[0]) == (dispatcher == "allgather"), "only gathered tokens have places to find"
    assert steps[3] < steps[2] < steps[1]


def test_over_slow_links_all_of_the_shared_experts_is_hidden_time():
    """Forward: as long as they take; backward: and with the products of weight gradients."""
    job = planned_of(overlap=("shared_experts", "weight_gradients"))
    ops, costs = layer_of(job)
    shared, experts = (
        [op for op in ops if op.name.startswith(f"{kind}_") and op.name != "expert_swiglu"]
        for kind in ("shared", "expert")
    )
    forward, backward = (
        sum(getattr(op_parts(op, costs)[at], kind) for op in shared for kind in ("gemm", "weight", "elementwise"))
        for at in (0, 1)
    )
    backward += sum(op_parts(op, costs)[1].weight for op in experts)
    assert len(shared) == 4
    share = job.cluster.chip.efficiency.overlap
    assert hidden_us(ops, costs) == pytest.approx((share * forward, share * backward))


def test_over_fast_links_only_what_travels_is_hidden():
    """Nothing is left of all-to-alls but latencies and what no overlap hides."""
    ops, costs = layer_of(planned_of(overlap=("shared_experts",), speed=1e9))
    travelling = sum(op_parts(op, costs)[0].ep for op in ops)
    there, back = hidden_us(ops, costs)
    assert 0 <= there <= travelling
    assert back <= sum(op_parts(op, costs)[1].ep for op in ops)


def test_tokens_under_way_are_held_beside_shared_experts():
    alone, beside = (plan(planned_of(overlap=overlap)) for overlap in ((), ("shared_experts",)))
    assert beside.peak.allocated_bytes >= alone.peak.allocated_bytes
    assert "shared experts hide" in "\n".join(beside.assumptions)


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (job_of(MODEL, comm=Comm(moe_overlap=("shared_experts",))), "no tokens are sent to experts of other ranks"),
        (
            job_of(moe_model(), layout__ep=2, comm=Comm(moe_overlap=("shared_experts",))),
            "'shared_experts' has no effect, since no layer holds any",
        ),
        (job_of(MODEL, layout__ep=2, comm=Comm(moe_overlap=("permutation",))), "where tokens are not gathered"),
    ],
)
def test_an_overlap_without_effect_is_told(job, told):
    assert any(told in sentence for sentence in no_effect(job))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"layout__tp": 4, "layout__sp": True, "layout__etp": 2, "comm": Comm(moe_dispatcher="alltoall_seq")},
            "comm.moe_dispatcher='alltoall_seq': exchanges tokens for columns over tp=4, which must be the ranks of "
            "etp=2; use 'alltoall', or layout.etp=1 or 4",
        ),
        (
            {"layout__ep": 2, "comm": Comm(moe_overlap=("shared_experts",), moe_fb_overlap=True)},
            "excludes comm.moe_fb_overlap",
        ),
        (
            {
                "layout__ep": 2,
                "layout__tp": 2,
                "layout__sp": True,
                "comm": Comm(moe_overlap=("weight_gradients",), tp_overlap="mc2"),
            },
            "excludes comm.tp_overlap='mc2'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(fields, told):
    assert any(told in str(problem) for problem in job_problems(job_of(MODEL, **fields)))
