"""What is in a planned step adds up, and less work on faster parts never takes longer."""

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.flops import training_flops_per_token
from ridgeline.core.job import Comm, FullRecompute, Memory, SelectiveRecompute
from ridgeline.parallel.plan import plan
from tests.parallel.examples import changed, dense_model, job_of, moe_model

OVERLAP = Comm(overlap_grad_reduce=True)
BOTH = Comm(overlap_grad_reduce=True, overlap_param_gather=True)
DENSE, MOE = dense_model(layers=8), moe_model(layers=8)
jobs = st.builds(
    lambda model, layout, gbs, recompute, comm: job_of(
        model,
        **layout,
        **({"layout__sp": True} if model is MOE and layout.get("layout__tp") else {}),
        batch__gbs=8 * gbs,
        memory=Memory(recompute=recompute),
        comm=comm,
    ),
    st.sampled_from([DENSE, MOE]),
    st.sampled_from(
        [
            {},
            {"layout__tp": 2},
            {"layout__pp": 2},
            {"layout__pp": 2, "layout__vpp": 2},
            {"layout__tp": 2, "layout__pp": 4},
        ]
    ),
    st.integers(1, 4),
    st.sampled_from([None, SelectiveRecompute(), FullRecompute()]),
    st.sampled_from([Comm(), BOTH]),
)


@given(jobs)
@settings(deadline=None, max_examples=40)
def test_the_parts_of_a_step_add_up(job):
    time = plan(job).time
    assert sum(us for _, us in time.parts) == pytest.approx(time.step_us)
    assert all(us >= 0 for _, us in time.parts)
    assert 0 <= time.bubble < 1


@given(jobs)
@settings(deadline=None, max_examples=40)
def test_mfu_is_the_flops_of_the_tokens_over_the_peak(job):
    time, chip = plan(job).time, job.cluster.chip
    tokens = job.batch.gbs * job.batch.seq_len / (time.step_us / 1e6)
    assert time.tokens_per_s == pytest.approx(tokens)
    for convention, mfu in (("full", time.mfu_full), ("causal", time.mfu_causal)):
        flops = tokens * training_flops_per_token(job.model, job.batch.seq_len, attention=convention)
        assert mfu == pytest.approx(flops / job.cluster.world_size / chip.cube_flops)


@given(jobs)
@settings(deadline=None, max_examples=25)
def test_recomputing_more_takes_longer(job):
    times = [
        plan(attrs.evolve(job, memory=Memory(recompute=recompute))).time.step_us
        for recompute in (None, SelectiveRecompute(), FullRecompute())
    ]
    assert times == sorted(times)


def test_recomputing_a_part_takes_longer_and_the_whole_feed_forward_longer_still():
    none, activation, mlp = (
        plan(job_of(DENSE, memory=Memory(recompute=recompute))).time
        for recompute in (None, SelectiveRecompute(modules=("activation",)), SelectiveRecompute(modules=("mlp",)))
    )
    assert none.step_us < activation.step_us < mlp.step_us
    assert dict(activation.parts)["recompute"] < dict(none.parts)["elementwise"]


@given(jobs)
@settings(deadline=None, max_examples=25)
def test_a_faster_chip_and_faster_links_never_take_longer(job):
    slow = plan(job).time.step_us
    chip = {"cluster__chip__cube_flops": 1e13, "cluster__chip__hbm_bandwidth": 1e12}
    links = {"cluster__intra__bandwidth": 1e11, "cluster__inter__bandwidth": 1e11}
    assert plan(changed(job, **chip)).time.step_us <= slow
    assert plan(changed(job, **links)).time.step_us <= slow


def test_more_microbatches_leave_a_smaller_bubble():
    bubbles = [plan(job_of(DENSE, layout__pp=4, batch__gbs=gbs)).time.bubble for gbs in (8, 32, 128)]
    assert bubbles == sorted(bubbles, reverse=True)
    assert bubbles[2] < bubbles[0] / 3


def test_overlapping_gradients_saves_time():
    time = [plan(job_of(DENSE, batch__gbs=8, comm=comm)).time.step_us for comm in (Comm(), OVERLAP, BOTH)]
    assert time == sorted(time, reverse=True)
    assert time[2] < time[0]


@pytest.mark.parametrize(
    ("layout", "longer", "shorter"),
    [
        ({"layout__schedule": "zb_v"}, (3, 2, 2, 1), (1, 2, 2, 3)),
        ({"layout__vpp": 2}, (3, 2, 1, 2), (1, 2, 3, 2)),
    ],
)
def test_all_chunks_of_a_rank_hide_its_reductions(layout, longer, shorter):
    """Layers moved from one chunk of a rank to another, which a V and a loop place apart, hide as much."""
    slow = {"cluster__intra__bandwidth": 1e6, "layout__pp": 2, "batch__gbs": 64, **layout}
    exposed = []
    for stages in (longer, shorter):
        apart, beside = (
            dict(plan(job_of(DENSE, **slow, layout__stages=stages, comm=comm)).time.parts)["dp"]
            for comm in (Comm(), OVERLAP)
        )
        exposed.append(beside)
        assert 0 < beside < apart
    assert exposed[0] == pytest.approx(exposed[1], rel=1e-3)
