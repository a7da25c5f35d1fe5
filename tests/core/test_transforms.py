"""Transforms change what their names say, keep the rest, and compose like functions."""

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core import transforms as t
from ridgeline.core.cluster import Chip, Cluster, Link
from ridgeline.core.errors import SpecError
from ridgeline.core.job import Batch, FullRecompute, Job, SelectiveRecompute
from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Moe, Repeat

ATTENTION = Attention(heads=8, kv_heads=4, head_dim=16)
DENSE = Block(mixer=ATTENTION, feed_forward=Mlp(ffn_hidden=256))
SPARSE = Block(mixer=ATTENTION, feed_forward=Moe(experts=4, topk=2, ffn_hidden=64))
JOB = Job(
    model=ModelSpec(
        vocab_size=512,
        hidden=128,
        max_position=256,
        blocks=(Repeat(block=DENSE, count=3), Repeat(block=SPARSE, count=5)),
    ),
    cluster=Cluster(
        chip=Chip(name="chip", cube_flops=1e12, vector_flops=1e11, hbm_bytes=2**33, hbm_bandwidth=1e11),
        devices_per_node=8,
        intra=Link(bandwidth=1e9),
        inter=Link(bandwidth=1e9),
    ),
    batch=Batch(seq_len=64, gbs=32),
)

transforms = st.one_of(
    st.just(t.identity),
    st.builds(t.recompute, st.sampled_from(["none", "selective"])),
    st.builds(t.recompute, st.just("full"), method=st.sampled_from(["uniform", "block"]), num_layers=st.integers(1, 4)),
    st.builds(t.reduce_layers, st.integers(1, 12)),
    st.builds(t.distributed_optimizer, st.booleans()),
    st.builds(t.on_nodes, st.integers(1, 64)),
    st.lists(st.integers(0, 9), max_size=3).map(lambda positions: t.noop_layers(*positions)),
    st.builds(t.resize, gbs=st.one_of(st.none(), st.integers(1, 99)), seq_len=st.one_of(st.none(), st.integers(1, 99))),
    st.builds(t.with_layout, tp=st.integers(1, 8), sp=st.booleans()),
)


@given(transforms)
@settings(deadline=None)
def test_every_transform_is_idempotent(transform):
    assert transform(transform(JOB)) == transform(JOB)


@given(transforms, transforms, transforms)
@settings(deadline=None)
def test_compose_is_application_in_order_and_associates(first, second, third):
    in_order = third(second(first(JOB)))
    assert t.compose(first, second, third)(JOB) == in_order
    assert t.compose(t.compose(first, second), third)(JOB) == t.compose(first, t.compose(second, third))(JOB)


def test_composing_nothing_is_the_identity():
    assert t.compose()(JOB) is JOB


@given(st.integers(1, 12), st.integers(1, 12))
def test_reducing_twice_is_reducing_to_the_smaller(a, b):
    assert t.compose(t.reduce_layers(a), t.reduce_layers(b))(JOB) == t.reduce_layers(min(a, b))(JOB)


@given(st.integers(1, 12))
def test_reduced_layers_are_the_first_ones(count):
    assert t.reduce_layers(count)(JOB).model.layers() == JOB.model.layers()[:count]


@given(transforms)
@settings(deadline=None)
def test_a_transform_touches_at_most_one_part_of_a_job(transform):
    changed = transform(JOB)
    parts = [field.name for field in attrs.fields(Job) if getattr(changed, field.name) != getattr(JOB, field.name)]
    assert len(parts) <= 1


def test_recompute_says_what_is_recomputed():
    assert t.recompute("full", method="block", num_layers=3)(JOB).memory.recompute == FullRecompute(
        method="block", num_layers=3
    )
    assert t.recompute("selective", modules=("mlp",))(JOB).memory.recompute == SelectiveRecompute(modules=("mlp",))
    assert t.compose(t.recompute("full"), t.recompute("none"))(JOB) == JOB


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: t.with_layout(tpp=2), r"layout\.tpp=2: unknown field; did you mean 'tp'"),
        (lambda: t.with_layout(tp=0)(JOB), r"layout\.tp=0: must be >= 1"),
        (lambda: t.recompute("ful"), r"granularity='ful': unknown; did you mean 'full'"),
        (lambda: t.recompute("selective", modules=("attn",)), r"modules=\('attn',\)"),
        (lambda: t.reduce_layers(0), r"count=0: must be >= 1"),
    ],
)
def test_a_wrong_argument_is_named_with_the_way_out(make, message):
    with pytest.raises(SpecError, match=message):
        make()
