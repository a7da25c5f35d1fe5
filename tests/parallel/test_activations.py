"""Activations over time: what is held is what forwards kept and backwards have not given back."""

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.job import FullRecompute, Memory, SelectiveRecompute
from ridgeline.parallel.activations import StageLive, moments, peak_moment, stage_live
from ridgeline.parallel.plan import plan
from ridgeline.parallel.schedule import parse_schedule
from ridgeline.parallel.work import stage_work
from tests.parallel.examples import dense_model, job_of

MODEL = dense_model(layers=8, hidden=64, ffn=96)
sizes = st.integers(1, 100)
stages = st.lists(
    st.builds(
        lambda kept, deferred, forward, backward: StageLive(kept, deferred, kept + forward, kept + backward),
        *(sizes for _ in range(4)),
    ),
    min_size=2,
    max_size=2,
)
SCHEDULE = parse_schedule(
    "0: 0F0 1F0 0F1 1B0 0B0 1F1 1I1 0I1 1W1 0W1\n1: 2F0 3F0 2F1 3B0 2B0 3F1 3I1 2I1 3W1 2W1", name="mine"
)


@given(stages)
@settings(deadline=None)
def test_nothing_is_held_when_a_step_is_over(live):
    """What each action holds follows from those before it, down to nothing; the peak is the worst of all."""
    rows = list(moments(SCHEDULE.ranks[0], live))
    assert [str(row.action) for row in rows] == [str(action) for action in SCHEDULE.ranks[0]]
    kept, deferred, forward, _, _ = zip(*live, strict=True)
    assert rows[0].held + rows[0].work == forward[0]
    assert rows[1].held == kept[0] + kept[1]
    assert rows[-1].held == deferred[0]
    assert rows[-1].in_flight == 1
    worst = peak_moment(SCHEDULE.ranks[0], live)
    assert worst.held + worst.work == max(row.held + row.work for row in rows)


def kept_by_rank(recompute, **layout):
    job = job_of(MODEL, batch__gbs=16, **layout, memory=Memory(recompute=recompute))
    live = stage_live(job, stage_work(job, plan(job).stages))
    owned = plan(job).stages
    return [sum(live[stage].kept for stage in owned.owned_by(pp_rank)) for pp_rank in range(layout["layout__pp"])]


def test_layers_counted_by_rank_are_its_first():
    """Two chunks of two layers: one recomputed layer a rank keeps more than one a chunk, and less than none."""
    layout = {"layout__pp": 2, "layout__vpp": 2}
    none = kept_by_rank(None, **layout)
    chunk, rank = (
        kept_by_rank(FullRecompute(method="block", num_layers=1, per=per), **layout) for per in ("stage", "rank")
    )
    for of_none, of_chunk, of_rank in zip(none, chunk, rank, strict=True):
        assert of_none - of_rank == (of_none - of_chunk) / 2
    counts = FullRecompute(method="block", stage_layers=(1, 1, 0, 0))
    assert kept_by_rank(counts, **layout) == rank


@given(count=st.integers(0, 6))
@settings(deadline=None, max_examples=10)
def test_parts_of_the_first_layers_are_recomputed(count):
    """Each layer less that recomputes its activation keeps it: seq_len * ffn * 2 bytes."""
    layout = {"layout__pp": 2, "world_size": 2}
    recompute = SelectiveRecompute(modules=("activation",), num_layers=count) if count else None
    none, some = kept_by_rank(None, **layout), kept_by_rank(recompute, **layout)
    assert [of_none - of_some for of_none, of_some in zip(none, some, strict=True)] == [min(count, 4) * 64 * 96 * 2] * 2


def test_swapped_attention_waits_on_the_host():
    """A layer keeps what its feed-forward saves; its backward finds two layers' attention again."""
    job = job_of(MODEL, world_size=1)
    swapped = attrs.evolve(job, memory=Memory(swap_attention=True))
    (here,), (away,) = (stage_live(one, stage_work(one, plan(one).stages)) for one in (job, swapped))
    attention = (here.kept - away.kept) // 8
    assert attention > 64 * 64 * 2 * 4
    assert 6 * attention <= here.backward - away.backward <= 8 * attention
