"""Constants are found again from steps that were planned with them, and what no run tells stays where it was."""

import attrs
import pytest

from ridgeline.core.job import Memory
from ridgeline.parallel.calibration import (
    MeasuredRun,
    _steps,
    constants_of,
    fit,
    held_out,
    with_constants,
)
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.plan import plan
from tests.parallel.examples import dense_model, job_of

TRUE = {"gemm": 0.7, "memory": 0.45, "intra": 0.6}
MODEL = dense_model(layers=4, hidden=2048, ffn=8192, heads=16, kv_heads=16)


def jobs():
    a2 = cluster_preset("atlas-800t-a2")
    for layout in ({}, {"layout__tp": 2, "layout__sp": True}, {"layout__pp": 2}, {"layout__tp": 8, "layout__sp": True}):
        for seq_len in (1024, 4096):
            model = attrs.evolve(MODEL, max_position=seq_len)
            yield job_of(model, cluster=a2, batch__seq_len=seq_len, batch__gbs=64, memory=Memory(), **layout)


def measured(job, index):
    cluster = with_constants(job.cluster, TRUE)
    step_us = plan(attrs.evolve(job, cluster=cluster)).time.step_us
    return MeasuredRun(name=str(index), family="even" if index % 2 == 0 else "odd", job=job, step_us=step_us)


RUNS = tuple(measured(job, index) for index, job in enumerate(jobs()))


def worst(errors):
    return max(map(abs, errors))


def unfitted():
    return [plan(run.job).time.step_us / run.step_us - 1 for run in RUNS]


def test_constants_move_to_where_the_runs_are():
    """All the way would take more runs: each is held near its start as if one run had measured it."""
    found = fit(RUNS, constants=tuple(TRUE))
    assert worst(found.errors) < worst(unfitted()) / 2
    before = constants_of(RUNS[0].job.cluster)
    for name, value in TRUE.items():
        assert abs(found.values[name] - value) < abs(before[name] - value)


def test_constants_are_found_again_by_a_start_close_to_them():
    near = {name: value * 1.03 for name, value in TRUE.items()}
    runs = [attrs.evolve(run, job=attrs.evolve(run.job, cluster=with_constants(run.job.cluster, near))) for run in RUNS]
    found = fit(runs, constants=tuple(TRUE))
    assert worst(found.errors) < 0.015
    for name, value in TRUE.items():
        assert found.values[name] == pytest.approx(value, rel=0.025)


def test_a_run_held_out_is_told_by_the_others():
    assert worst(held_out(RUNS, constants=tuple(TRUE))) < worst(unfitted()) * 0.7


def test_the_answer_is_the_same_every_time():
    assert fit(RUNS, constants=("gemm", "intra")) == fit(RUNS, constants=("gemm", "intra"))


def test_a_constant_that_no_run_tells_of_stays_where_it_was():
    before = constants_of(RUNS[0].job.cluster)
    found = fit(RUNS, constants=("gemm", "inter", "scatter"))
    assert found.values["inter"] == pytest.approx(before["inter"])
    assert found.values["scatter"] == pytest.approx(before["scatter"])


@pytest.mark.parametrize("layout", [{}, {"layout__pp": 4}, {"layout__pp": 2, "layout__vpp": 2}])
def test_a_long_step_is_told_from_two_short_ones(layout):
    """A pipeline in its steady state repeats itself, so that a plan of few microbatches tells of many."""
    job = job_of(MODEL, batch__seq_len=256, batch__gbs=1024, **layout)
    assert _steps(job).more > 0
    assert _steps(job).step_us(constants_of(job.cluster)) == pytest.approx(plan(job).time.step_us, rel=1e-9)
