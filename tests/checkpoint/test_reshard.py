"""Reshard plans between random layouts of random models, carried out and judged in numpy."""

from collections.abc import Iterable

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ridgeline.checkpoint.boxes import Box, slices
from ridgeline.checkpoint.names import params_of, stored
from ridgeline.checkpoint.optimizer_shards import optimizer_holders, plan_buckets, shares_of
from ridgeline.checkpoint.pieces import Holder, Piece, indices, piece_of, transposed_piece
from ridgeline.checkpoint.ranks import weight_holders
from ridgeline.checkpoint.reshard import ReshardPlan, reshard
from ridgeline.core.errors import CheckpointError, PlanError
from ridgeline.core.job import Job
from ridgeline.core.model import ModelSpec
from ridgeline.parallel.plan import plan
from tests.parallel.examples import dense_model, job_of, moe_model

SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
Arrays = dict[tuple[str, str], np.ndarray]


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """A small model no two of whose sizes are equal, dense, tied or with experts."""
    attention = {"qkv_bias": draw(st.booleans()), "qk_norm": draw(st.booleans()), "out_bias": draw(st.booleans())}
    sizes = {"layers": 4, "hidden": 20, "heads": 8, "kv_heads": 4, "head_dim": 6, "vocab_size": 37}
    if draw(st.booleans()):
        return moe_model(**sizes, ffn=12, experts=8, dense_layers=draw(st.sampled_from([0, 1])), attention=attention)
    return dense_model(**sizes, ffn=28, tied_embeddings=draw(st.booleans()), attention=attention)


def job_with(draw: st.DrawFn, model: ModelSpec) -> Job:
    """Some job of a model that can be planned."""
    moe = any(param.experts for param in params_of(model).values())
    tp, pp, dp, cp = (draw(st.sampled_from([1, 2, 4])) for _ in range(4))
    layout = {
        "tp": tp,
        "pp": pp,
        "cp": min(cp, 2),
        "vpp": draw(st.sampled_from([1, 2])),
        "sp": tp > 1,
        "vocab_multiple": draw(st.sampled_from([1, 8])),
    }
    if moe:
        layout |= {"ep": draw(st.sampled_from([1, 2, 4])), "etp": draw(st.sampled_from([1, 2, tp]))}
    stages = pp * layout["vpp"]
    match draw(st.sampled_from(["even", "uneven", "noop"])):
        case "uneven" if stages in (2, 3):
            layout["stages"] = draw(st.sampled_from([(1, 3), (3, 1)]))
        case "noop" if stages > 1:
            layout["noop_layers"] = tuple(draw(st.permutations(range(4 + stages)))[: -4 % stages or stages])
    fields = {f"layout__{name}": value for name, value in layout.items()}
    fields["memory__distributed_optimizer"] = draw(st.booleans())
    job = job_of(model, world_size=tp * pp * dp * layout["cp"], **fields)
    try:
        plan(job)
    except PlanError:
        assume(False)
    return job


@st.composite
def two_jobs(draw: st.DrawFn) -> tuple[Job, Job]:
    model = draw(models())
    return job_with(draw, model), job_with(draw, model)


def whole_tensors(model: ModelSpec) -> dict[str, np.ndarray]:
    """Every stored tensor of a model, no two of whose elements are equal."""
    shapes = {place.key: place.shape for place in (stored(fqn, param) for fqn, param in params_of(model).items())}
    numbers = iter(range(10**9))
    return {key: np.array([next(numbers) for _ in range(int(np.prod(s)))]).reshape(s) for key, s in shapes.items()}


def scattered(holders: Iterable[Holder], tensors: dict[str, np.ndarray]) -> Arrays:
    """What holders hold, each element put in its place one by one."""
    arrays: Arrays = {}
    for holder in holders:
        for buffer in holder.buffers:
            flat = np.full(buffer.elements, -1)
            for piece in buffer.pieces:
                flat[list(indices(piece))] = tensors[piece.key][slices(piece.box)].reshape(-1)
            arrays[holder.name, buffer.name] = flat
    return arrays


def strided(flat: np.ndarray, start: int, strides: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(flat[start:], shape, [stride * flat.itemsize for stride in strides])


def executed(planned: ReshardPlan, source: Arrays) -> Arrays:
    """The plan carried out; that nothing is written twice is checked as it goes."""
    result: Arrays = {}
    for fill in planned.fills:
        flat = np.full(fill.buffer.elements, -1)
        for copy in fill.copies:
            target = strided(flat, copy.start, copy.strides, copy.shape)
            assert (target == -1).all(), (fill.holder, fill.buffer.name, copy)
            target[...] = strided(source[copy.holder, copy.buffer], copy.source_start, copy.source_strides, copy.shape)
        result[fill.holder, fill.buffer.name] = flat
    return result


def equal(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@SETTINGS
@given(two_jobs())
def test_weights_go_everywhere_once(jobs: tuple[Job, Job]) -> None:
    """Each rank of the other layout gets each of its elements once, and it is the right one."""
    source, destination = (weight_holders(plan(job)) for job in jobs)
    tensors = whole_tensors(jobs[0].model)
    assert equal(executed(reshard(source, destination), scattered(source, tensors)), scattered(destination, tensors))


@SETTINGS
@given(two_jobs())
def test_optimizer_state_goes_there_and_back(jobs: tuple[Job, Job]) -> None:
    """Masters and moments come through another layout, sharded over dp or not, bit for bit."""
    source, destination = (optimizer_holders(plan(job)) for job in jobs)
    there, back = reshard(source, destination), reshard(destination, source)
    before = scattered(source, whole_tensors(jobs[0].model))
    assert equal(executed(back, executed(there, before)), before)


@SETTINGS
@given(two_jobs(), st.data())
def test_two_steps_are_one(jobs: tuple[Job, Job], data: st.DataObject) -> None:
    """By way of a third layout everything comes out as it does directly."""
    between = weight_holders(plan(data.draw(st.composite(job_with)(jobs[0].model))))
    source, destination = (weight_holders(plan(job)) for job in jobs)
    before = scattered(source, whole_tensors(jobs[0].model))
    first = executed(reshard(source, between), before)
    assert equal(executed(reshard(between, destination), first), executed(reshard(source, destination), before))


@SETTINGS
@given(two_jobs())
def test_every_rank_is_there(jobs: tuple[Job, Job]) -> None:
    """Holders name every rank of the job, and a distributed optimizer's shards are all of what the ranks hold."""
    for job in jobs:
        planned = plan(job)
        world = set(range(job.cluster.world_size))
        assert {rank for holder in weight_holders(planned) for rank in holder.ranks} == world
        seen: dict[str, np.ndarray] = {key: np.zeros(t.shape, int) for key, t in whole_tensors(job.model).items()}
        for holder in optimizer_holders(planned):
            for piece in (piece for buffer in holder.buffers for piece in buffer.pieces):
                seen[piece.key][slices(piece.box)] += 1
        assert all(count.min() >= 1 for count in seen.values())


def test_a_plan_is_read_by_eye() -> None:
    """Two tp ranks into one: gate and up of each come to stand together."""
    model = dense_model(layers=1, hidden=4, heads=2, kv_heads=2, ffn=6, vocab_size=8)
    two, one = (weight_holders(plan(job_of(model, world_size=tp, layout__tp=tp))) for tp in (2, 1))
    lines = str(reshard(two, one)).splitlines()
    first = next(index for index, line in enumerate(lines) if "linear_fc1" in line)
    name = "0.decoder.layers.0.mlp.linear_fc1.weight"
    assert lines[first : first + 5] == [
        f"tp0 pp0: {name} (12, 4)",
        f"  (3, 4) at 0 by (4, 1) from tp0 pp0: {name} at 0 by (4, 1)",
        f"  (3, 4) at 12 by (4, 1) from tp1 pp0: {name} at 0 by (4, 1)",
        f"  (3, 4) at 24 by (4, 1) from tp0 pp0: {name} at 12 by (4, 1)",
        f"  (3, 4) at 36 by (4, 1) from tp1 pp0: {name} at 12 by (4, 1)",
    ]


def test_what_is_missing_is_named() -> None:
    """A source that lacks a part is refused with the tensor, the box and how much is missing."""
    model = dense_model(layers=1)
    two, one = (weight_holders(plan(job_of(model, world_size=tp, layout__tp=tp))) for tp in (2, 1))
    with pytest.raises(CheckpointError, match=r"output_layer.weight\[0:128, 0:64\]: 4096 elements have no source"):
        reshard(two[:1], one)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 900), st.booleans()), min_size=1, max_size=8),
    st.integers(1, 6),
    st.sampled_from([None, 256, 1000]),
)
def test_shards_share_out_each_parameter(params: list[tuple[int, bool]], ranks: int, bucket: int | None) -> None:
    """Every element of every parameter is one rank's, and has a place of its own in its share."""
    sizes, alone = [size for size, _ in params], [alone for _, alone in params]
    seen = [np.zeros(size, int) for size in sizes]
    end = 0
    for each in plan_buckets(sizes, alone, ranks=ranks, bucket=bucket):
        assert each.begin == end <= each.filled <= each.end
        end = each.end
        for shares in shares_of(each, sizes, ranks=ranks):
            lies = np.zeros((each.end - each.begin) // ranks, int)
            for share in shares:
                seen[share.number][share.start : share.stop] += 1
                lies[share.at : share.at + share.stop - share.start] += 1
            assert lies.max(initial=0) <= 1
    assert all((count == 1).all() for count in seen)


def test_pieces_against_numpy() -> None:
    """A piece's elements stand where numpy's views put them, as they are or transposed."""
    box = Box((1, 2), (3, 4))
    buffer = np.arange(5 * 7 * 9).reshape(5, 7, 9)
    assert list(indices(piece_of("w", box, shape=buffer.shape, at=(2, 1, 3)))) == buffer[2, 1:4, 3:7].ravel().tolist()
    turned = list(indices(transposed_piece("w", box, shape=buffer.shape, at=(2, 1, 3))))
    assert turned == buffer[2, 1:5, 3:6].T.ravel().tolist()
    assert list(indices(Piece("w", Box((), ()), 5, ()))) == [5]


def test_lost_pieces_are_missed() -> None:
    """The judge above is able to fail: a plan that leaves out a copy leaves elements empty."""
    job = job_of(dense_model(layers=1), world_size=2, layout__tp=2)
    holders = weight_holders(plan(job))
    planned = reshard(holders, holders)
    first = planned.fills[0]
    broken = attrs.evolve(planned, fills=(first._replace(copies=first.copies[1:]), *planned.fills[1:]))
    before = scattered(holders, whole_tensors(job.model))
    assert equal(executed(planned, before), before)
    assert not equal(executed(broken, before), before)
