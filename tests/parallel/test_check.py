"""Every rule between specs: refused with path, value, rule and way out, all at once; what is legal passes."""

import random

import attrs
import pytest

from ridgeline.core.errors import PlanError
from ridgeline.core.job import (
    Batch,
    Comm,
    ConstantLr,
    FullRecompute,
    LinearLr,
    Lora,
    Memory,
    Optimizer,
    SelectiveRecompute,
    WsdLr,
)
from ridgeline.core.model import GatedDeltaNet
from ridgeline.parallel.check import check_job, job_problems
from ridgeline.parallel.no_effect import no_effect
from tests.parallel.examples import DENSE, MOE, changed, dense_model, indexed_model, job_of, moe_model

SPARSE_BLOCK = MOE.blocks[0].block


@pytest.mark.parametrize(
    ("job", "lines"),
    [
        (
            job_of(DENSE, layout__tp=3),
            [
                "layout.tp*cp*pp=3: must divide world_size=8 (cluster.nodes=1 * 8); use 1, 2, 4 or 8",
                "layout.tp=3: must divide heads=8; use 1, 2, 4 or 8",
                "layout.tp=3: must divide kv_heads=4 or be a multiple of it; use 1, 2, 4 or 8",
            ],
        ),
        (job_of(DENSE, layout__sp=True), ["layout.sp=True: needs tp > 1"]),
        (job_of(DENSE, layout__ep=2), ["layout.ep=2: needs a model with experts; use 1"]),
        (
            job_of(MOE, layout__ep=16),
            ["layout.etp*ep=16: must divide tp*cp*dp=8", "layout.ep=16: must divide experts=8"],
        ),
        (job_of(moe_model(experts=6), layout__ep=4), ["layout.ep=4: must divide experts=6; use 1, 2, 3 or 6"]),
        (
            job_of(moe_model(ffn=34), layout__etp=4),
            ["layout.etp=4: must divide the experts' ffn_hidden=34; use 1, 2, 17 or 34"],
        ),
        (job_of(MOE, layout__tp=2), ["layout.sp=False: must be true for a model with experts when tp=2 > 1"]),
        (job_of(moe_model(topk=1)), ["model.blocks.feed_forward.topk=1: with normalize_topk every weight is 1"]),
        (job_of(DENSE, batch__gbs=12), ["batch.gbs=12: must be a multiple of mbs=1 * dp=8 = 8; use 8 or 16"]),
        (job_of(DENSE, batch__seq_len=512), ["batch.seq_len=512: must be <= model.max_position=256"]),
        (
            job_of(DENSE, layout__tp=4, layout__sp=True, batch__seq_len=62),
            ["batch.seq_len=62: must be a multiple of cp*tp=4 under sp; use 60 or 64"],
        ),
        (
            job_of(DENSE, layout__cp=2, batch__seq_len=62),
            ["batch.seq_len=62: must be a multiple of 2*cp=4; use 60 or 64"],
        ),
        (
            job_of(DENSE, layout__cp=8, layout__cp_algorithm="ulysses", layout__tp=2, world_size=16),
            ["layout.cp=8: tp*cp=16 must divide heads=8 under ulysses"],
        ),
        (
            job_of(DENSE, layout__cp=8, layout__cp_algorithm="hybrid", layout__ulysses=8),
            [
                "layout.ulysses=8: must divide cp=8 under hybrid, and leave groups of more than one rank and more than "
                "one group; use 2, 4"
            ],
        ),
        (
            job_of(DENSE, layout__cp=8, layout__cp_algorithm="hybrid", layout__ulysses=4, layout__tp=4, world_size=32),
            ["layout.ulysses=4: tp*ulysses=16 must divide heads=8 under hybrid"],
        ),
        (job_of(DENSE, layout__ulysses=2), ["layout.ulysses=2: goes with cp_algorithm='hybrid', not with 'ring'"]),
        (
            job_of(dense_model(attention={"window": 32}), layout__cp=2),
            ["layout.cp_algorithm='ring': cannot follow a window=32 shorter than seq_len=64"],
        ),
        (
            job_of(dense_model(layers=30), layout__pp=4, layout__vpp=2, batch__gbs=8),
            [
                "model.num_layers=30: does not split evenly over pp=4 * vpp=2 = 8 stages; "
                "use pp*vpp from {1, 2, 3, 5, 6, 10, 15, 30}"
            ],
        ),
        (
            job_of(DENSE, layout__pp=2, layout__stages=(8,)),
            ["layout.stages=(8,): must have one count for each of pp=2 * vpp=1 = 2 stages"],
        ),
        (
            job_of(DENSE, layout__pp=2, layout__stages=(4, 5)),
            ["layout.stages=(4, 5): must add up to num_layers=8, not 9"],
        ),
        (job_of(DENSE, layout__pp=2, layout__stages=(9, -1)), ["layout.stages=(9, -1): counts must be >= 0"]),
        (
            job_of(DENSE, layout__pp=2, layout__stages=(4, 4), layout__noop_layers=(0,)),
            ["layout.noop_layers=(0,): excludes layout.stages"],
        ),
        (
            job_of(dense_model(layers=7), layout__noop_layers=(8,)),
            ["layout.noop_layers=(8,): positions must lie in 0 .. 7"],
        ),
        (
            job_of(dense_model(layers=6), layout__noop_layers=(1, 1)),
            ["layout.noop_layers=(1, 1): names a position twice"],
        ),
        (
            job_of(DENSE, memory__swap_optimizer=True, memory__distributed_optimizer=False),
            ["memory.swap_optimizer=True: needs the distributed optimizer, whose shards it moves"],
        ),
        (
            job_of(DENSE, memory__swap_optimizer=True, precision__masters="low_bits", precision__moments="bf16"),
            [
                "memory.swap_optimizer=True: moves masters, which precision.masters='low_bits' does not have",
                "memory.swap_optimizer=True: moves fp32 states, not precision.moments='bf16'",
            ],
        ),
        (
            job_of(DENSE, memory__swap_attention=True, adapter=Lora(), memory__recompute=FullRecompute()),
            [
                "memory.swap_attention=True: cannot follow layers with adapters",
                "memory.swap_attention=True: has nothing to move when whole layers are recomputed",
            ],
        ),
        (
            job_of(DENSE, layout__pp=2, memory__recompute=FullRecompute(method="block", stage_layers=(1, 1, 1))),
            ["memory.recompute.stage_layers=(1, 1, 1): must be a count >= 0 for each of pp*vpp=2 stages"],
        ),
        (
            job_of(MOE, adapter=Lora(), comm__moe_dispatcher="allgather"),
            ["adapter='lora': of experts need tokens sent to them one by one"],
        ),
        (job_of(DENSE, layout__vpp=2), ["layout.vpp=2: needs pp > 1"]),
        (
            job_of(DENSE, layout__pp=2, layout__vpp=2, layout__schedule="1f1b"),
            ["layout.schedule='1f1b': runs one chunk a rank, not vpp=2"],
        ),
        (
            job_of(DENSE, layout__pp=2, layout__schedule="interleaved_1f1b"),
            ["layout.schedule='interleaved_1f1b': needs vpp > 1"],
        ),
        (
            job_of(DENSE, layout__pp=2, layout__vpp=2, layout__schedule="zb_h1"),
            ["layout.schedule='zb_h1': runs one chunk a rank, not vpp=2; use 'interleaved_1f1b' or leave it out"],
        ),
        (job_of(DENSE, layout__schedule="zb_v"), ["layout.schedule='zb_v': needs pp > 1"]),
        (
            job_of(DENSE, layout__pp=2, layout__vpp=2, layout__schedule="zb_v"),
            ["layout.vpp=2: must be 1: zb_v has two chunks a rank of its own; use 1"],
        ),
        (
            job_of(DENSE, layout__pp=8, layout__schedule="zb_v"),
            ["model.num_layers=8: does not split evenly over pp=8 * vpp=2 = 16 stages"],
        ),
        (
            job_of(
                dense_model(layers=8),
                layout__pp=2,
                layout__cp=2,
                layout__schedule="dualpipe_v",
                layout__stages=(1, 3, 2, 2),
                comm__overlap_grad_reduce=True,
                batch__gbs=6,
            ),
            [
                "layout.stages=(1, 3, 2, 2): must be left out: dualpipe_v has as many layers on every stage",
                "layout.cp=2: must be 1 with dualpipe_v; use 1 or 'zb_v'",
                "comm.overlap_grad_reduce=True: must be false with dualpipe_v",
                "batch.gbs=6: gives 3 microbatches; dualpipe_v needs at least 2*pp=4; raise it to 8 or more",
            ],
        ),
        (
            job_of(DENSE, layout__pp=4, layout__vpp=2, layout__schedule="zb_vpp", batch__gbs=12),
            ["batch.gbs=12: gives 6 microbatches; zb_vpp needs a multiple of pp=4; use 8 or 16"],
        ),
        (
            job_of(DENSE, layout__pp=2, layout__cp=2, layout__schedule="seq1f1b", batch__mbs=2),
            [
                "layout.slices=1: must be > 1 with seq1f1b; use 4, or '1f1b'",
                "layout.cp=2: must be 1 with seq1f1b, which itself cuts the sequence",
                "batch.mbs=2: must be 1 with seq1f1b",
            ],
        ),
        (
            job_of(DENSE, layout__tp=2, layout__sp=True, layout__pp=2, layout__schedule="seq1f1b", layout__slices=12),
            ["batch.seq_len=64: must be a multiple of slices*tp=24 with seq1f1b; use 48 or 72"],
        ),
        (
            job_of(DENSE, layout__pp=2, layout__slices=2),
            ["layout.slices=2: are those of seq1f1b, which layout.schedule='1f1b' is not; use 1"],
        ),
        (
            job_of(DENSE, layout__pp=4, layout__vpp=2, batch__gbs=6),
            ["layout.microbatch_group_size=4: must be <= num_microbatches=3", "raise batch.gbs to 8 or more"],
        ),
        (
            job_of(DENSE, layout__pp=4, layout__vpp=2, batch__gbs=12),
            ["layout.microbatch_group_size=4: leaves 2 of num_microbatches=6 over", "from {6}"],
        ),
        (
            job_of(DENSE, layout__pp=4, layout__vpp=2, layout__microbatch_group_size=2),
            ["layout.microbatch_group_size=2: must be >= pp=4; use 4"],
        ),
        (
            job_of(DENSE, memory=Memory(recompute=FullRecompute(num_layers=3))),
            ["memory.recompute.num_layers=3: uniform groups must divide every stage's layers [8]; use 1, 2, 4 or 8"],
        ),
        (
            job_of(DENSE, optimizer=Optimizer(warmup_steps=1000)),
            ["optimizer.warmup_steps=1000: must be < run.steps=1000; use at most 999"],
        ),
        (
            job_of(DENSE, optimizer=Optimizer(warmup_steps=9, lr_schedule=LinearLr(decay_steps=5))),
            ["optimizer.warmup_steps=9: must be < optimizer.lr_schedule.decay_steps=5"],
        ),
        (
            job_of(DENSE, run__steps=10, optimizer=Optimizer(warmup_steps=4, lr_schedule=WsdLr(anneal_steps=8))),
            [
                "optimizer.lr_schedule.anneal_steps=8: must leave room for warmup_steps=4 before run.steps=10; "
                "use at most 6"
            ],
        ),
        (
            job_of(
                DENSE,
                comm=Comm(overlap_grad_reduce=True, overlap_param_gather=True),
                memory=Memory(distributed_optimizer=False),
            ),
            ["comm.overlap_param_gather=True: needs the distributed optimizer"],
        ),
        (job_of(DENSE, layout__order="tp-xp-dp-pp"), ["layout.order='tp-xp-dp-pp': axis 'xp' is unknown"]),
        (job_of(DENSE, layout__order="tp-dp-dp-pp"), ["layout.order='tp-dp-dp-pp': axis 'dp' appears twice"]),
        (job_of(DENSE, layout__order="tp-cp"), ["layout.order='tp-cp': must name every axis of a degree > 1; dp=8"]),
        (
            job_of(MOE, layout__pp=2, layout__ep=4, layout__order="tp-cp-ep-pp-dp"),
            ["layout.order='tp-cp-ep-pp-dp': numbers the pipelines of dense and of expert layers differently"],
        ),
        (
            job_of(
                changed(
                    DENSE,
                    blocks=(
                        changed(
                            DENSE.blocks[0],
                            block__mixer=GatedDeltaNet(key_heads=2, value_heads=2, key_head_dim=8, value_head_dim=8),
                        ),
                    ),
                ),
                layout__tp=4,
                layout__sp=True,
            ),
            ["layout.tp=4: must divide key_heads=2; use 1 or 2"],
        ),
        (
            job_of(
                attrs.evolve(
                    DENSE,
                    blocks=tuple(
                        attrs.evolve(
                            DENSE.blocks[0], count=1, block=changed(DENSE.blocks[0].block, mixer__shares_kv=shared)
                        )
                        for shared in (False, True, False, True)
                    ),
                ),
                layout__pp=2,
                layout__stages=(1, 3),
            ),
            ["model.blocks.mixer.shares_kv=True: layer 1 has no layer below it on its stage"],
        ),
        (
            job_of(indexed_model(shares=True), layout__pp=2, layout__stages=(1, 3)),
            ["model.blocks.mixer.indexer.shared=True: layer 1 has no layer below it on its stage"],
        ),
        (
            job_of(
                changed(DENSE, blocks=(changed(DENSE.blocks[0], block__shortcut=MOE.blocks[0].block.feed_forward),)),
                layout__pp=8,
            ),
            [
                f"model.blocks.shortcut='moe': the experts beside layer {layer} join after the next layer"
                for layer in range(8)
            ],
        ),
    ],
)
def test_a_broken_rule_names_path_value_rule_and_way_out(job, lines):
    with pytest.raises(PlanError) as caught:
        check_job(job)
    text = str(caught.value)
    for line in lines:
        assert line in text
    assert len(caught.value.problems) <= max(2, len(lines) + 1)


def test_all_problems_of_a_job_come_in_one_error():
    job = job_of(
        MOE,
        layout__tp=2,
        layout__ep=3,
        layout__pp=3,
        layout__vpp=2,
        layout__schedule="1f1b",
        batch__seq_len=300,
        optimizer=Optimizer(warmup_steps=5000),
    )
    with pytest.raises(PlanError) as caught:
        check_job(job)
    paths = {problem.path for problem in caught.value.problems}
    assert paths >= {
        "layout.tp*cp*pp",
        "layout.sp",
        "layout.ep",
        "model.num_layers",
        "layout.schedule",
        "batch.seq_len",
        "optimizer.warmup_steps",
    }


@pytest.mark.parametrize(
    "job",
    [
        job_of(DENSE),
        job_of(DENSE, layout__tp=8),  # more ranks than kv heads: Megatron gathers and picks
        job_of(DENSE, layout__tp=2, layout__sp=True, layout__pp=2, layout__vpp=2),
        job_of(DENSE, layout__pp=4, layout__vpp=2, batch__gbs=14, layout__microbatch_group_size=7),
        job_of(DENSE, layout__pp=2, layout__stages=(5, 3)),
        job_of(dense_model(layers=6), layout__pp=4, layout__noop_layers=(0, 7)),
        job_of(DENSE, layout__order="tp-pp-dp", layout__pp=2),
        job_of(MOE, layout__ep=4, layout__etp=2, layout__tp=2, layout__sp=True, layout__pp=1),
        job_of(moe_model(experts=6), layout__ep=2),
        job_of(DENSE, memory=Memory(recompute=FullRecompute(method="block", num_layers=100))),
        job_of(DENSE, batch=Batch(seq_len=256, gbs=8)),
        job_of(DENSE, optimizer=Optimizer(warmup_steps=999, lr_schedule=ConstantLr())),
        job_of(DENSE, layout__cp=2, batch__seq_len=64),
        job_of(DENSE, layout__etp=2),
    ],
)
def test_what_megatron_accepts_passes(job):
    assert job_problems(job) == ()


def test_settings_without_effect_are_told():
    job = job_of(
        DENSE,
        layout__microbatch_group_size=3,
        layout__etp=2,
        memory=Memory(recompute=SelectiveRecompute(modules=("moe", "mlp"))),
    )
    assert list(no_effect(job)) == [
        "layout.microbatch_group_size=3 has no effect with schedule 1f1b",
        "layout.etp=2 has no effect, since no layer holds experts",
        "memory.recompute.modules: 'moe' has no effect, since no layer holds one",
    ]


BUILT = ("layout.tp", "layout.sp", "layout.ep", "layout.etp", "layout.order", "layout.stages", "layout.vpp", "model.")
"""Paths of the rules that Megatron-core meets while it forms groups and builds a model."""


def random_jobs(count):
    """Layouts of which about half are wrong, each in few ways."""
    draw = random.Random(1)
    jobs = []
    while len(jobs) < count:
        model = draw.choice([DENSE, MOE, dense_model(layers=6, heads=6, kv_heads=2, ffn=60, hidden=96)])
        tp = draw.choice([1, 1, 2, 2, 2, 4, 3])
        changes = {
            "layout__tp": tp,
            "layout__pp": draw.choice([1, 1, 2, 2, 4, 3]),
            "layout__vpp": draw.choice([1, 1, 1, 1, 2, 3]),
            "layout__ep": draw.choice([1, 1, 2, 2, 4, 3] if model is MOE else [1, 1, 1, 1, 1, 2]),
            "layout__etp": draw.choice([1, 1, 2, 3]),
            "layout__sp": (tp > 1) == (draw.random() < 0.9),
            "layout__order": draw.choice(["tp-cp-ep-dp-pp"] * 3 + ["tp-cp-ep-pp-dp", "tp-pp-dp", "pp-dp-cp-ep-tp"]),
        }
        jobs.append(job_of(model, world_size=draw.choice([8, 16, 16, 12]), **changes))
    return jobs


def test_verdicts_on_layouts_are_those_of_megatron(ranks):
    jobs = random_jobs(150)
    # What it says only in a training forward: experts with tp need sp.
    verdicts = [
        [
            str(problem)
            for problem in job_problems(job)
            if problem.path.startswith(BUILT) and "must be true for a model with experts" not in problem.rule
        ]
        for job in jobs
    ]
    (theirs,) = ranks.run("tests.parallel.upstream:build_errors", 1, jobs)
    for job, ours, error in zip(jobs, verdicts, theirs, strict=True):
        assert bool(ours) == bool(error), (job.layout, job.cluster.world_size, ours, error)
    assert 25 < sum(map(bool, theirs)) < 125  # neither kind is rare
