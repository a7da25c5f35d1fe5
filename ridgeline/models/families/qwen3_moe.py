"""Qwen3-MoE: Qwen3's attention; experts in each ``decoder_sparse_step``-th layer, ``mlp_only_layers`` left out."""

from typing import Any

from ridgeline.core.model import Block, Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    SPARSE_WEIGHTS,
    attention_of,
    decoder_config,
    decoder_of,
    first_attention,
)
from ridgeline.models.families.sparse_steps import SPARSE_FIELDS, feed_forwards_config, feed_forwards_of
from ridgeline.models.family import Family, Field, Values

FIELDS = (
    *DECODER_FIELDS,
    *SPARSE_FIELDS,
    Field("num_key_value_heads", int),
    Field("head_dim", int | None, None),
    Field("attention_bias", bool, False),
    Field("use_sliding_window", bool, False),
    Field("sliding_window", int | None, None),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    attention = attention_of(
        hf,
        rope,
        qkv_bias=hf["attention_bias"],
        out_bias=hf["attention_bias"],
        qk_norm=True,
        window=hf["sliding_window"] if hf["use_sliding_window"] else None,
    )
    return decoder_of(hf, tuple(Block(mixer=attention, feed_forward=part) for part in feed_forwards_of(hf)))


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    window = first_attention(spec).window
    return {
        **decoder_config(spec),
        **feed_forwards_config(spec),
        "attention_bias": first_attention(spec).qkv_bias,
        "use_sliding_window": window is not None,
        "sliding_window": window,
    }


QWEN3_MOE = Family(
    name="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Moe, Mlp),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=SPARSE_WEIGHTS,
)
