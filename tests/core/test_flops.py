"""FLOPs of a model agree with published figures and with an independent count over the parameter table."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.flops import (
    attended_positions,
    forward_flops_per_token,
    matmul_params,
    mixer_flops_per_token,
    training_flops_per_token,
)
from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Moe, Repeat
from ridgeline.core.params import model_params, num_active_params


def model(*, hidden, layers, heads, kv_heads, ffn, vocab=32000, experts=0, topk=2, window=None, tied=False):
    attention = Attention(heads=heads, kv_heads=kv_heads, head_dim=hidden // heads, window=window)
    feed_forward = Moe(experts=experts, topk=topk, ffn_hidden=ffn) if experts else Mlp(ffn_hidden=ffn)
    block = Block(mixer=attention, feed_forward=feed_forward)
    return ModelSpec(
        vocab_size=vocab,
        hidden=hidden,
        max_position=65536,
        blocks=(Repeat(block=block, count=layers),),
        tied_embeddings=tied,
    )


LLAMA2_7B = model(hidden=4096, layers=32, heads=32, kv_heads=32, ffn=11008)
LLAMA2_13B = model(hidden=5120, layers=40, heads=40, kv_heads=40, ffn=13824)
LLAMA2_70B = model(hidden=8192, layers=80, heads=64, kv_heads=8, ffn=28672)
MIXTRAL_8X7B = model(hidden=4096, layers=32, heads=32, kv_heads=8, ffn=14336, experts=8)


@pytest.mark.parametrize(
    ("spec", "seq_len", "full", "causal"),
    [
        (LLAMA2_7B, 4096, 46.1, 42.9),
        (LLAMA2_13B, 4096, 87.2, 82.1),
        (LLAMA2_70B, 4096, 444.5, 428.4),
        (MIXTRAL_8X7B, 32768, 128.0, 102.3),
    ],
)
def test_training_gflops_per_token_are_those_behind_the_published_mfu(spec, seq_len, full, causal):
    assert round(training_flops_per_token(spec, seq_len, attention="full") / 1e9, 1) == full
    assert round(training_flops_per_token(spec, seq_len, attention="causal") / 1e9, 1) == causal


@given(
    layers=st.integers(1, 5),
    heads=st.sampled_from([4, 8, 12]),
    kv_heads=st.sampled_from([1, 2, 4]),
    ffn=st.integers(1, 300),
    experts=st.sampled_from([0, 4, 7]),
    tied=st.booleans(),
)
@settings(deadline=None)
def test_matmul_params_are_the_active_matrices_of_the_parameter_table(layers, heads, kv_heads, ffn, experts, tied):
    spec = model(
        hidden=96, layers=layers, heads=heads, kv_heads=kv_heads, ffn=ffn, vocab=101, experts=experts, tied=tied
    )
    vectors = sum(param.elements for _, param in model_params(spec) if len(param.shape) == 1)
    embedding = 101 * 96
    expected = num_active_params(spec) - vectors - (0 if tied else embedding)
    assert matmul_params(spec) == expected


@given(seq_len=st.integers(1, 300), window=st.one_of(st.none(), st.integers(1, 400)))
def test_causal_positions_are_those_a_mask_leaves(seq_len, window):
    attention = Attention(heads=1, kv_heads=1, head_dim=2, window=window)
    seen = [min(i + 1, window or seq_len) for i in range(seq_len)]
    assert abs(attended_positions(attention, seq_len, "causal") - sum(seen) / seq_len) <= 0.5


def test_full_attention_ignores_the_mask():
    windowed = Attention(heads=2, kv_heads=2, head_dim=4, window=8)
    assert mixer_flops_per_token(windowed, 64, "full") == 4 * 64 * 2 * 4


def test_training_is_three_forwards():
    assert training_flops_per_token(LLAMA2_7B, 10, attention="full") == 3 * forward_flops_per_token(
        LLAMA2_7B, 10, attention="full"
    )
