"""Megatron-core builds, on ranks of worlds no laptop has, the very parameters that the program lists."""

import math

import attrs
import pytest

from ridgeline.core.job import Batch, Job
from ridgeline.core.layout import Layout
from ridgeline.models.program import lower
from ridgeline.models.runtime.verify import verify_rank
from ridgeline.models.zoo import model_preset
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.plan import plan

QWEN72 = ("qwen2.5-72b", 128, Layout(tp=8, pp=4, vpp=2, sp=True))
QWEN235 = ("qwen3-235b-a22b", 1024, Layout(tp=4, pp=8, ep=16, sp=True, noop_layers=(0, 95)))
UNEVEN = ("llama3.1-8b", 8, Layout(tp=2, pp=4, stages=(7, 9, 9, 7)))
TIED = ("qwen2.5-1.5b", 8, Layout(tp=2, pp=4, vpp=7, noop_layers=()))
TIED_IN_V = ("qwen2.5-1.5b", 8, Layout(tp=2, pp=2, schedule="zb_v"))
FEW_KV_HEADS = ("qwen2.5-1.5b", 8, Layout(tp=4, sp=True))


def program_of(name, world_size, layout, rank):
    job = Job(
        model=model_preset(name),
        cluster=cluster_preset("atlas-800t-a2", nodes=world_size // 8),
        batch=Batch(seq_len=4096, mbs=1, gbs=2048),
        layout=layout,
    )
    return lower(plan(job), rank)


@pytest.mark.parametrize(
    ("case", "rank"),
    [
        (QWEN72, 0),
        (QWEN72, 77),
        (QWEN72, 127),
        (QWEN235, 0),
        (QWEN235, 1023),
        (UNEVEN, 3),
        (TIED, 7),
        (TIED_IN_V, 1),
        (TIED_IN_V, 7),
        (FEW_KV_HEADS, 2),
    ],
)
def test_every_parameter_is_as_planned(case, rank):
    verified = verify_rank(program_of(*case, rank))
    assert verified.differences == ()
    assert verified.planned == verified.built
    assert verified.elements == sum(math.prod(owned.local.local_shape) for owned in verified.program.params)
    assert verified.seconds < 60


def test_a_wrong_plan_is_told():
    program = program_of(*UNEVEN, 0)
    first, second, *others = program.params
    wrong = attrs.evolve(first, local=attrs.evolve(first.local, local_shape=(1, 2)))
    verified = verify_rank(attrs.evolve(program, params=(wrong, *others)))
    assert verified.differences == (
        f"chunk 0: {first.local.name}: planned (1, 2), built {first.local.local_shape}",
        f"chunk 0: {second.local.name}: planned nothing, built {second.local.local_shape}",
    )
