"""The learning rate of every step is the one that Megatron-core's scheduler, which remembers its steps, would set."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.core.job import ConstantLr, CosineLr, LinearLr, Optimizer, WsdLr
from ridgeline.parallel.lr import lr_at

upstream = pytest.importorskip("megatron.core.optimizer_param_scheduler")
WSD_STYLES = ("linear", "cosine", "exponential", "minus_sqrt")


@st.composite
def optimizers(draw):
    end = draw(st.integers(2, 40))
    warmup = draw(st.integers(0, end - 1))
    decay = {"decay_steps": draw(st.sampled_from((end, None)))}
    schedules = [ConstantLr(), LinearLr(**decay), CosineLr(**decay)]
    if warmup < end - 1:
        anneal = draw(st.integers(1, end - warmup))
        schedules.append(WsdLr(anneal_steps=anneal, style=draw(st.sampled_from(WSD_STYLES)), **decay))
    lr = draw(st.floats(1e-6, 1.0))
    share = draw(st.floats(0.0, 1.0))
    return Optimizer(lr=lr, min_lr=lr * share, warmup_steps=warmup, lr_schedule=draw(st.sampled_from(schedules))), end


@given(optimizers())
def test_every_step_is_megatrons(case):
    optimizer, end = case
    group = {"max_lr": optimizer.lr, "min_lr": optimizer.min_lr}
    schedule = optimizer.lr_schedule
    theirs = upstream.OptimizerParamScheduler(
        SimpleNamespace(param_groups=[group]),
        init_lr=0.0,
        max_lr=optimizer.lr,
        min_lr=optimizer.min_lr,
        lr_warmup_steps=optimizer.warmup_steps,
        lr_decay_steps=end,
        lr_decay_style={"wsd": "WSD"}.get(schedule.kind, schedule.kind),
        start_wd=0.0,
        end_wd=0.0,
        wd_incr_steps=end,
        wd_incr_style="constant",
        wsd_decay_steps=getattr(schedule, "anneal_steps", None),
        lr_wsd_decay_style=getattr(schedule, "style", None),
    )
    for step in range(end + 3):
        assert lr_at(step, optimizer, steps=end) == pytest.approx(group["lr"], rel=1e-12, abs=1e-18)
        theirs.step(1)


def test_a_decay_ends_where_it_says_or_with_the_run():
    short = Optimizer(lr=1.0, min_lr=0.5, lr_schedule=LinearLr(decay_steps=10))
    assert [lr_at(step, short, steps=100) for step in (0, 5, 10, 11)] == [1.0, 0.75, 0.5, 0.5]
    whole = Optimizer(lr=1.0, min_lr=0.5, lr_schedule=LinearLr())
    assert [lr_at(step, whole, steps=100) for step in (0, 50, 100)] == [1.0, 0.75, 0.5]
