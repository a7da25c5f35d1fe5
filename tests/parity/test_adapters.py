"""Adapters train in every layout as they do beside transformers' model, and nothing else changes."""

import functools

import attrs
import numpy as np
import pytest

from ridgeline.core.job import FullRecompute, Lora, SelectiveRecompute
from ridgeline.models.hf_config import model_from_hf, read_hf_config
from tests.parity import hf_models
from tests.parity.adapted import judge, some_pairs, tune
from tests.parity.hf_models import SEQ_LEN, tokens
from tests.parity.small import job_of
from tests.parity.wholes import different, whole_gradients

TP2, SP = {"layout__tp": 2}, {"layout__tp": 2, "layout__sp": True}
DP2 = {"batch__gbs": 4}
LAYOUTS = {
    "alone": (1, {}),
    "tp2": (2, TP2),
    "tp2 sp": (2, SP),
    "tp2 sp recomputed": (2, {**SP, "memory__recompute": FullRecompute()}),
    "pp2": (2, {"layout__pp": 2}),
    "pp2 recomputed": (
        2,
        {"layout__pp": 2, "memory__recompute": SelectiveRecompute(modules=("core_attn", "mlp", "layernorm"))},
    ),
    "tp2 pp2 vpp2": (4, {**TP2, "layout__pp": 2, "layout__vpp": 2, "batch__mbs": 1}),
    "dp2": (2, DP2),
    "dp2 distributed": (2, {**DP2, "memory__distributed_optimizer": True}),
    "dp2 overlapped": (
        2,
        {
            **DP2,
            "memory__distributed_optimizer": True,
            "comm__overlap_grad_reduce": True,
            "comm__overlap_param_gather": True,
        },
    ),
    "cp2 ulysses": (2, {"layout__cp": 2, "layout__cp_algorithm": "ulysses"}),
    "ep2": (2, {**DP2, "layout__ep": 2}),
    "tp2 ep2": (2, {**SP, "layout__ep": 2}),
}
DENSE = ("alone", "tp2", "tp2 sp", "tp2 sp recomputed", "pp2", "dp2 distributed")
CASES = {
    **{("qwen3", name): name in DENSE for name in LAYOUTS if "ep2" not in name},
    ("llama tied", "pp2"): True,
    ("llama biased", "tp2 sp"): False,
    ("gpt_oss", "ep2"): False,
    ("qwen2_moe", "tp2 ep2"): True,
    ("qwen2_moe", "ep2"): True,
    ("qwen3_moe", "ep2"): False,
    ("deepseek_v3", "tp2 ep2"): False,
}
"""Whether each is tried every day."""


def tuned_job(model, *, world_size=1, **fields):
    sizes = {"batch__gbs": 2, "batch__seq_len": SEQ_LEN, "objective__indexer_loss": 0.0, **fields}
    targets = sizes.pop("targets", Lora().targets)
    job = job_of(model, world_size=world_size, **sizes)
    return attrs.evolve(job, adapter=Lora(rank=3, alpha=5.0, targets=targets))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A case's folder, the adapters it is given, and what becomes of them."""

    @functools.cache
    def of_case(case: str):
        folder = tmp_path_factory.mktemp("hf")
        base = hf_models.judge(case, folder)
        job = tuned_job(model_from_hf(read_hf_config(folder)))
        pairs = some_pairs(job)
        return folder, base, pairs, judge(folder, job, tokens().numpy(), pairs)

    return of_case


@pytest.mark.parametrize(
    ("case", "layout"),
    [pytest.param(*pair, marks=() if every_day else pytest.mark.full) for pair, every_day in CASES.items()],
)
def test_adapters_train_as_beside_transformers(ranks, judged, case, layout):
    folder, _, pairs, truth = judged(case)
    world_size, fields = LAYOUTS[layout]
    job = tuned_job(model_from_hf(read_hf_config(folder)), world_size=world_size, init__hf=str(folder), **fields)
    results = ranks.run(tune, world_size, job, tokens().numpy(), pairs)
    assert different(whole_gradients(result.gradients for result in results), truth.gradients) == {}
    assert results[0].losses == pytest.approx(truth.losses, rel=1e-5)
    assert results[0].grad_norm == pytest.approx(truth.grad_norm, rel=1e-5)
    # Adam divides by the root of a gradient's square: where that is near 0, rounding decides a step's direction.
    assert different(whole_gradients(result.adapters for result in results), truth.adapters, rel=1e-4) == {}
    for result in results:
        assert result.frozen_changed == []
        assert result.trained == [name for name in result.trained if ".lora_" in name] != []
        assert result.state_bytes[:2] == result.planned_bytes[:2]
        moments, planned = result.state_bytes[2], result.planned_bytes[2]
        # A distributed optimizer keeps nothing of its buffers' padding, which the plan counts on every rank.
        assert 0.8 * planned < moments <= planned if job.memory.distributed_optimizer else moments == planned


def test_new_adapters_change_nothing_yet(ranks, judged):
    """B is 0: the first loss is the base's; and A is the same in every layout, within peft's bounds."""
    folder, base, pairs, _ = judged("qwen3")
    found = []
    for layout in ("alone", "tp2 sp"):
        world_size, fields = LAYOUTS[layout]
        job = tuned_job(model_from_hf(read_hf_config(folder)), world_size=world_size, init__hf=str(folder), **fields)
        results = ranks.run(tune, world_size, job, tokens().numpy(), None, 0)
        assert results[0].losses[0] == pytest.approx(base.loss, rel=1e-6)
        found.append(whole_gradients(result.adapters for result in results))
    assert different(*found) == {}
    assert found[0].keys() == pairs.keys()
    for name, values in found[0].items():
        bound = 0.0 if ".lora_B." in name else 1 / np.sqrt(values.shape[1])
        assert 0.9 * bound <= np.abs(values).max() <= bound
