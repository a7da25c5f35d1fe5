"""Qwen1.5-MoE and Qwen2-57B-A14B: Qwen2's attention, and a shared expert behind a sigmoid gate."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Block, Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    SPARSE_WEIGHTS,
    WINDOW_FIELDS,
    attention_of,
    decoder_config,
    decoder_of,
    first_attention,
    first_feed_forward,
    layer_windows,
    window_config,
)
from ridgeline.models.families.sparse_steps import SPARSE_FIELDS, feed_forwards_config, feed_forwards_of
from ridgeline.models.family import Family, Field, Values
from ridgeline.models.hf_template import Template, direct, gate_up

FIELDS = (
    *DECODER_FIELDS,
    *WINDOW_FIELDS,
    *SPARSE_FIELDS,
    Field("num_key_value_heads", int),
    Field("head_dim", int | None, None),
    Field("qkv_bias", bool, True),
    Field("shared_expert_intermediate_size", int),
)

_SHARED = "model.layers.{layer}.mlp.shared_expert"
SHARED_WEIGHTS: Mapping[str, Template] = MappingProxyType(
    {
        "mlp.shared_experts.linear_fc1.weight": gate_up(_SHARED + ".gate_proj.weight", _SHARED + ".up_proj.weight"),
        "mlp.shared_experts.linear_fc2.weight": direct(_SHARED + ".down_proj.weight"),
        "mlp.shared_experts.gate_weight": direct(_SHARED + "_gate.weight"),
    }
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    parts = feed_forwards_of(hf, shared_ffn=hf["shared_expert_intermediate_size"], shared_gate=True)
    mixers = [attention_of(hf, rope, qkv_bias=hf["qkv_bias"], window=window) for window in layer_windows(hf)]
    blocks = (Block(mixer=mixer, feed_forward=part) for mixer, part in zip(mixers, parts, strict=True))
    return decoder_of(hf, tuple(blocks))


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    return {
        **decoder_config(spec),
        **window_config(spec),
        **feed_forwards_config(spec),
        "qkv_bias": first_attention(spec).qkv_bias,
        "shared_expert_intermediate_size": first_feed_forward(spec, Moe).shared_ffn,
    }


QWEN2_MOE = Family(
    name="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Moe, Mlp),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=MappingProxyType(
        {
            **SPARSE_WEIGHTS,
            **SHARED_WEIGHTS,
        }
    ),
)
