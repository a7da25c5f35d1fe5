"""Over all ranks of any layout, what is written is every stored tensor, once."""

import math

import attrs
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ridgeline.checkpoint.boxes import Box, tiling_fault
from ridgeline.checkpoint.holdings import balance, fragments_of, holdings_of, writes_shards, written_by
from ridgeline.checkpoint.names import params_of, stored, stored_box
from ridgeline.core.errors import LoweringError, PlanError
from ridgeline.core.job import Job
from ridgeline.core.model import ModelSpec
from ridgeline.models.program import RankProgram, lower
from ridgeline.parallel.plan import plan
from tests.parallel.examples import dense_model, job_of, moe_model

DENSE = dense_model(layers=4, vocab_size=131, attention={"qkv_bias": True, "qk_norm": True, "out_bias": True})
MODELS = [DENSE, attrs.evolve(DENSE, tied_embeddings=True), moe_model(layers=4, experts=4, dense_layers=1)]
LAYOUTS = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """A job that can be lowered, of up to 8 ranks."""
    tp, pp, dp = (draw(st.sampled_from([1, 2, 4])) for _ in range(3))
    assume(tp * pp * dp <= 8)
    model = draw(st.sampled_from(MODELS))
    layout = {"tp": tp, "pp": pp, "vpp": draw(st.sampled_from([1, 2])) if pp == 2 else 1}
    if model is MODELS[-1]:
        layout |= {"ep": draw(st.sampled_from([1, 2])), "etp": draw(st.sampled_from([1, tp]))}
    job = job_of(model, world_size=tp * pp * dp, **{f"layout__{name}": degree for name, degree in layout.items()})
    try:
        lower(plan(job), 0)
    except (PlanError, LoweringError):
        assume(False)
    return job


def programs(job: Job) -> list[RankProgram]:
    planned = plan(job)
    return [lower(planned, rank) for rank in range(job.cluster.world_size)]


def whole_tensors(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    places = (stored(fqn, param) for fqn, param in params_of(model).items())
    return {place.key: place.shape for place in places}


def assert_tiled(model: ModelSpec, boxes: dict[str, list[Box]]) -> None:
    shapes = whole_tensors(model)
    assert boxes.keys() == shapes.keys()
    assert {key: tiling_fault(shapes[key], parts) for key, parts in boxes.items()} == dict.fromkeys(shapes)


@LAYOUTS
@given(jobs())
def test_weights_are_written_once(job: Job) -> None:
    """Every element of every parameter is written by exactly one rank; padding of the vocabulary by none."""
    boxes: dict[str, list[Box]] = {}
    for program in programs(job):
        holdings = holdings_of(program)
        for index in written_by(program.rank, holdings):
            place = holdings[index].place
            fragments = fragments_of(holdings[index])
            boxes.setdefault(place.key, []).extend(stored_box(place, fragment.box) for fragment in fragments)
    assert_tiled(job.model, boxes)


@LAYOUTS
@given(jobs(), st.integers(0, 2**32))
def test_optimizer_shards_are_written_once(job: Job, seed: int) -> None:
    """Wherever the distributed optimizer cuts a parameter between dp ranks, the shards written make it once."""
    boxes: dict[str, list[Box]] = {}
    for program in programs(job):
        for holding in holdings_of(program):
            if not writes_shards(program, holding):
                continue
            # Only the ranks that write this copy share it: those with the same tp rank.
            group = dict(program.groups)["expt_dp" if holding.owned.local.param.experts else "dp_cp"]
            cuts = _cuts(holding.elements, len(group), seed)
            start, stop = cuts[group.index(program.rank) :][:2]
            place, fragments = holding.place, fragments_of(holding, start, stop)
            boxes.setdefault(place.key, []).extend(stored_box(place, fragment.box) for fragment in fragments)
    assert_tiled(job.model, boxes)


def _cuts(elements: int, parts: int, seed: int) -> list[int]:
    """Where a parameter of so many elements is cut: the same on every rank."""
    inner = sorted((seed * (7 * i + 3) + i) % (elements + 1) for i in range(parts - 1))
    return [0, *inner, elements]


@LAYOUTS
@given(jobs(), st.randoms(use_true_random=False))
def test_fragments_lie_where_they_say(job: Job, random) -> None:
    """The fragments of a range are in its order, do not overlap, and leave out padding alone."""
    program = lower(plan(job), random.randrange(job.cluster.world_size))
    for holding in holdings_of(program):
        start = random.randint(0, holding.elements)
        stop = random.randint(start, holding.elements)
        position = start
        for fragment in fragments_of(holding, start, stop):
            assert fragment.start >= position
            position = fragment.start + fragment.box.elements
        assert position <= stop
        if holding.owned.local.param.role not in ("embedding", "head"):
            held = sum(fragment.box.elements for fragment in fragments_of(holding, start, stop))
            assert held == stop - start


@settings(deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 8))
def test_writers_are_alike_busy(sizes: list[int], bins: int) -> None:
    """No writer has more than a fair share and one piece."""
    chosen = balance(sizes, bins)
    loads = [sum(size for size, bin_ in zip(sizes, chosen, strict=True) if bin_ == b) for b in range(bins)]
    assert sum(loads) == sum(sizes)
    assert max(loads) <= math.ceil(sum(sizes) / bins) + max(sizes)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_padding_is_never_stored(tp: int) -> None:
    """Stored rows of the vocabulary are the model's own, whatever tp rounds them up to."""
    job = job_of(DENSE, world_size=tp, layout__tp=tp, layout__vocab_multiple=64)
    rows = 0
    for program in programs(job):
        embedding = holdings_of(program)[0]
        rows += sum(fragment.box.shape[0] for fragment in fragments_of(embedding))
    assert rows == DENSE.vocab_size
