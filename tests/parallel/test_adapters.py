"""Adapters train beside frozen weights: sizes by hand, nothing else has gradients or states."""

from math import prod

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.errors import PlanError
from ridgeline.core.job import Dpo, Lora, Memory
from ridgeline.parallel.adapters import NF4_BITS
from ridgeline.parallel.plan import plan
from ridgeline.parallel.shards import rank_params
from tests.parallel.examples import dense_model, job_of
from tests.parity.small import MODELS
from tests.parity.small import job_of as small_job

LLAMA2_7B = dense_model(layers=32, hidden=4096, ffn=11008, heads=32, kv_heads=32, vocab_size=32000, max_position=4096)
LINEAR = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
ADAPTERS = 32 * 16 * ((4096 + 3 * 4096) + (4096 + 4096) + (4096 + 2 * 11008) + (11008 + 4096))


def tuned(**fields):
    adapter = fields.pop("adapter", Lora(rank=16))
    memory = Memory(distributed_optimizer=False)
    return plan(job_of(LLAMA2_7B, **{"world_size": 1, "memory": memory, **fields}, adapter=adapter)).memory[0]


def test_a_published_run_holds_what_is_planned():
    """MindSpeed-LLM, tune_llama2_tp1_pp1_lora_ptd: 13,432 MiB after the first update, two letters a frozen weight."""
    memory = tuned()
    assert memory.static_bytes / 2**20 == pytest.approx(13432, rel=1e-3)
    assert memory.grads_bytes == 4 * ADAPTERS
    assert memory.optimizer_bytes == 12 * ADAPTERS


def test_nf4_stores_linear_weights_in_four_bits():
    """Its run measured 4,361 MiB, with what bitsandbytes holds besides."""
    saved = tuned().params_bytes - tuned(adapter=Lora(rank=16, base="nf4")).params_bytes
    assert saved == pytest.approx(LINEAR * (2 - NF4_BITS / 8), rel=1e-6)
    assert tuned(adapter=Lora(rank=16, base="nf4")).static_bytes / 2**20 == pytest.approx(4361, rel=0.025)


@given(tp=st.sampled_from([1, 2, 4]), rank=st.integers(1, 64))
@settings(deadline=None, max_examples=20)
def test_each_rank_splits_an_adapter_as_its_linear(tp, rank):
    """Over all tp ranks, the split halves of the adapters come to one whole, the others to tp."""
    model = dense_model(layers=3, hidden=64, heads=8, kv_heads=4, ffn=96)
    job = job_of(model, world_size=tp, layout__tp=tp, adapter=Lora(rank=rank), memory__distributed_optimizer=False)
    sides = [(128, 64), (64, 64), (192, 64), (64, 96)]  # qkv, proj, fc1, fc2: out, in
    split = [rank * (out if index in (0, 2) else into) for index, (out, into) in enumerate(sides)]
    whole = [rank * (into if index in (0, 2) else out) for index, (out, into) in enumerate(sides)]
    assert plan(job).memory[0].grads_bytes == 4 * 3 * (sum(split) // tp + sum(whole))


def test_a_reference_model_holds_weights_alone():
    """Twice the weights, and gradients and states of one model."""
    job = job_of(dense_model(), world_size=1)
    alone, pair = plan(job).memory[0], plan(job_of(dense_model(), world_size=1, objective=Dpo())).memory[0]
    weights = 2 * sum(prod(param.local_shape) for param in rank_params(plan(job), 0))
    assert pair.params_bytes - alone.params_bytes == weights
    assert (pair.grads_bytes, pair.optimizer_bytes) == (alone.grads_bytes, alone.optimizer_bytes)
    simpo = job_of(dense_model(), world_size=1, objective=Dpo(loss="simpo"))
    assert plan(simpo).memory[0].params_bytes == alone.params_bytes


def test_targets_that_name_no_linear_are_told():
    """One that some layers have is enough; none is a mistake."""
    latent = attrs.evolve(MODELS["latent"], mtp=0)
    said = plan(attrs.evolve(small_job(latent), adapter=Lora())).warnings
    assert "adapter.targets: 'linear_qkv' has no effect, since no layer has a linear of that name" in said
    with pytest.raises(PlanError, match=r"adapter.targets=\('linear_qkv',\): names no linear layer of this model"):
        plan(attrs.evolve(small_job(latent), adapter=Lora(targets=("linear_qkv",))))
