"""The canonical parameter table."""

import math

import pytest
from hypothesis import given, settings

from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Moe, Repeat
from ridgeline.core.params import fqn_of, model_params, num_active_params, num_params
from tests.strategies import attention_models


def model_of(*, vocab, hidden, layers, heads, kv_heads, ffn, experts=0, topk=0, bias=False, tied=False):
    mixer = Attention(heads=heads, kv_heads=kv_heads, head_dim=hidden // heads, qkv_bias=bias)
    feed_forward = Moe(experts=experts, topk=topk, ffn_hidden=ffn) if experts else Mlp(ffn_hidden=ffn)
    blocks = (Repeat(block=Block(mixer=mixer, feed_forward=feed_forward), count=layers),)
    return ModelSpec(vocab_size=vocab, hidden=hidden, max_position=4096, blocks=blocks, tied_embeddings=tied)


LLAMA2_7B = model_of(vocab=32000, hidden=4096, layers=32, heads=32, kv_heads=32, ffn=11008)
QWEN25_05B = model_of(vocab=151936, hidden=896, layers=24, heads=14, kv_heads=2, ffn=4864, bias=True, tied=True)
QWEN25_7B = model_of(vocab=152064, hidden=3584, layers=28, heads=28, kv_heads=4, ffn=18944, bias=True)
MIXTRAL_8X7B = model_of(vocab=32000, hidden=4096, layers=32, heads=32, kv_heads=8, ffn=14336, experts=8, topk=2)


@pytest.mark.parametrize(
    ("model", "published"),
    [
        (LLAMA2_7B, 6_738_415_616),  # sizes of the safetensors files on the hub, in elements
        (QWEN25_05B, 494_032_768),
        (QWEN25_7B, 7_615_616_512),
        (MIXTRAL_8X7B, 46_702_792_704),
    ],
)
def test_published_models_have_their_published_size(model, published):
    """To the parameter."""
    assert num_params(model) == published


def test_a_token_meets_two_of_mixtrals_experts():
    """12.88 billion, as its authors count."""
    assert num_active_params(MIXTRAL_8X7B) == 46_702_792_704 - 32 * 6 * 3 * 4096 * 14336
    assert num_active_params(LLAMA2_7B) == num_params(LLAMA2_7B)


@given(attention_models())
@settings(max_examples=50, deadline=None)
def test_names_are_unique_and_cover_the_count(model):
    """One name a tensor, every expert spelled out, and their elements sum to the model's."""
    names = [
        (fqn_of(layer, param, expert=expert), math.prod(param.shape))
        for layer, param in model_params(model)
        for expert in (range(param.experts) if param.experts else [None])
    ]
    assert len({name for name, _ in names}) == len(names)
    assert sum(elements for _, elements in names) == num_params(model)
    assert {layer for layer, _ in model_params(model)} == {None, *range(model.num_layers)}


@given(attention_models())
@settings(max_examples=50, deadline=None)
def test_a_token_meets_no_more_than_there_is(model):
    """Active parameters are all of them exactly when every expert is chosen."""
    moes = [run.block.feed_forward for run in model.blocks if isinstance(run.block.feed_forward, Moe)]
    all_chosen = all(moe.topk == moe.experts for moe in moes)
    assert (num_active_params(model) == num_params(model)) == all_chosen
    assert num_active_params(model) <= num_params(model)
