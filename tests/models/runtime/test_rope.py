"""Frequencies and tables equal those of transformers for every way of scaling positions."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ridgeline.core.model import DynamicRope, LinearRope, Llama3Rope, Rope, YarnRope
from ridgeline.models.runtime.rope import SCALINGS, rope_frequencies, rotary_table

HEAD_DIM = 12
ROPES = {
    "default": (None, {}),
    "linear": (LinearRope(factor=3.0), {"factor": 3.0}),
    "dynamic": (DynamicRope(factor=2.0, original_max_position=32), {"factor": 2.0}),
    "llama3": (
        Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=128),
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ),
    "yarn": (YarnRope(factor=4.0, original_max_position=32), {"factor": 4.0, "original_max_position_embeddings": 32}),
    "yarn, one factor": (
        YarnRope(factor=4.0, original_max_position=32, beta_fast=8.0, beta_slow=2.0, attention_factor=1.5),
        {
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
            "attention_factor": 1.5,
        },
    ),
    "yarn, two scales": (
        YarnRope(factor=40.0, original_max_position=64, mscale=0.7, mscale_all_dim=1.1),
        {"factor": 40.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 1.1},
    ),
}


def config_of(name):
    kind = name.partition(",")[0]
    return LlamaConfig(
        hidden_size=HEAD_DIM * 4,
        num_attention_heads=4,
        head_dim=HEAD_DIM,
        max_position_embeddings=32,
        rope_parameters={"rope_type": kind, "rope_theta": 500.0, **ROPES[name][1]},
    )


def test_every_scaling_is_judged():
    assert {type(scaling) for scaling, _ in ROPES.values()} == set(SCALINGS)


@pytest.mark.parametrize("length", [7, 32, 33, 1000])
@pytest.mark.parametrize("name", [name for name in ROPES if name != "default"])
def test_frequencies(name, length):
    kind = name.partition(",")[0]
    theirs, factor = ROPE_INIT_FUNCTIONS[kind](config_of(name), None, seq_len=length)
    ours, ours_factor = rope_frequencies(
        Rope(base=500.0, scaling=ROPES[name][0]), rotary_dim=HEAD_DIM, length=length, max_position=length
    )
    assert torch.equal(ours, theirs)
    assert ours_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ROPES)
def test_tables(name, dtype):
    length = 50
    positions = torch.arange(length).expand(2, -1)
    cos, sin = LlamaRotaryEmbedding(config_of(name))(torch.zeros(1, dtype=dtype), positions)
    rope = Rope(base=500.0, scaling=ROPES[name][0])
    table = rotary_table(
        rope, rotary_dim=HEAD_DIM, positions_bs=positions, length=length, max_position=length, dtype=dtype
    )
    # Transformers raises a dynamic base, and that alone, in fp32: its frequencies are off by a rounding.
    atol = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype] if name == "dynamic" else 0.0
    for ours, theirs in ((table.cos_sb1d, cos), (table.sin_sb1d, sin)):
        torch.testing.assert_close(ours.squeeze(2).transpose(0, 1), theirs, rtol=0.0, atol=atol)
