"""Recomputing activations changes no gradient, and does recompute what it says."""

import functools

import pytest

from ridgeline.core.job import FullRecompute, SelectiveRecompute
from tests.parity.on_ranks import Trained, forwards_of_a_step, train
from tests.parity.small import MODELS, job_of
from tests.parity.wholes import different, whole_gradients

MODES = {
    "core_attn": SelectiveRecompute(modules=("core_attn",)),
    "mlp": SelectiveRecompute(modules=("mlp",)),
    "moe": SelectiveRecompute(modules=("moe",)),
    "layernorm": SelectiveRecompute(modules=("layernorm",)),
    "all parts": SelectiveRecompute(modules=("core_attn", "mlp", "moe", "layernorm")),
    "uniform": FullRecompute(method="uniform", num_layers=1),
    "uniform 2": FullRecompute(method="uniform", num_layers=2),
    "block 3": FullRecompute(method="block", num_layers=3),
}
LAYOUTS = {
    "alone": (1, {}),
    "tp2 sp ep2": (2, {"layout__tp": 2, "layout__sp": True, "layout__ep": 2}),
    "pp2": (2, {"layout__pp": 2}),
}
EVERY_DAY = {("block 3", "alone"), ("all parts", "tp2 sp ep2"), ("uniform", "tp2 sp ep2"), ("uniform 2", "pp2")}
CASES = [
    pytest.param(mode, layout, marks=() if (mode, layout) in EVERY_DAY else pytest.mark.full)
    for mode in MODES
    for layout in LAYOUTS
]

MICROBATCHES, LAYERS = 4, 4
ONCE = MICROBATCHES * LAYERS
FORWARDS = {
    "core_attn": {"CoreAttention": 2 * ONCE},
    "mlp": {"ActivationModule": 2 * ONCE},
    "layernorm": {"RmsNorm": 4 * ONCE + 2 * ONCE + MICROBATCHES},  # two more in each layer are of heads; a final one
    "uniform": {"RotaryAttention": 2 * ONCE, "ActivationModule": 2 * ONCE},
    "block 3": {"RotaryAttention": 2 * ONCE - MICROBATCHES},
}


@pytest.fixture(scope="module")
def alone(ranks):
    @functools.cache
    def train_alone(model: str) -> Trained:
        return ranks.run(train, 1, job_of(MODELS[model]), 2)[0]

    return train_alone


@pytest.mark.parametrize(("mode", "layout"), CASES)
def test_gradients_stay(ranks, alone, mode, layout):
    world_size, fields = LAYOUTS[layout]
    job = job_of(MODELS["mixed"], world_size=world_size, memory__recompute=MODES[mode], **fields)
    results = ranks.run(train, world_size, job, 2)
    truth = alone("mixed")
    assert results[0].losses == pytest.approx(truth.losses, rel=1e-5)
    assert results[0].grad_norms == pytest.approx(truth.grad_norms, rel=1e-5)
    ours = whole_gradients(result.gradients for result in results)
    assert different(ours, whole_gradients([truth.gradients])) == {}


@pytest.mark.parametrize("mode", FORWARDS)
def test_it_is_run_again(ranks, mode):
    (counts,) = ranks.run(forwards_of_a_step, 1, job_of(MODELS["dense"], memory__recompute=MODES[mode]))
    assert {name: counts[name] for name in FORWARDS[mode]} == FORWARDS[mode]
    (kept,) = ranks.run(forwards_of_a_step, 1, job_of(MODELS["dense"]))
    assert kept["CoreAttention"] == kept["ActivationModule"] == kept["RotaryAttention"] == ONCE


@pytest.mark.parametrize(
    ("model", "mode"),
    [("shortcut", "all parts"), ("shortcut", "uniform"), ("shared kv", "uniform"), ("shared indexers", "uniform")],
)
def test_gradients_stay_between_layers(ranks, alone, model, mode):
    """Where experts read what the feed-forward reads and join a layer later, where keys and values go to the next."""
    fields = {"layout__tp": 2, "layout__sp": True, "layout__ep": 2}
    results = ranks.run(train, 2, job_of(MODELS[model], world_size=2, memory__recompute=MODES[mode], **fields), 2)
    truth = alone(model)
    assert results[0].losses == pytest.approx(truth.losses, rel=1e-5)
    assert different(whole_gradients(r.gradients for r in results), whole_gradients([truth.gradients])) == {}


def test_shared_experts_run_beside_tokens_that_are_sent_again(ranks):
    """Experts recomputed whole, whose tokens travel once more while shared experts run once more."""
    truth = ranks.run(train, 1, job_of(MODELS["shared"]), 2)[0]
    fields = {"layout__ep": 2, "comm__moe_overlap": ("shared_experts",), "memory__recompute": MODES["moe"]}
    results = ranks.run(train, 2, job_of(MODELS["shared"], world_size=2, **fields), 2)
    assert results[0].losses == pytest.approx(truth.losses, rel=1e-5)
    assert different(whole_gradients(r.gradients for r in results), whole_gradients([truth.gradients])) == {}
