"""GPT-OSS: sinks, a window in every other layer, biases everywhere, clamped and shifted SwiGLU experts."""

from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Attention, Block, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    DECODER_WEIGHTS,
    attention_of,
    decoder_config,
    decoder_of,
    first_feed_forward,
)
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import direct, stacked, stacked_turns

FIELDS = (
    *DECODER_FIELDS,
    Field("intermediate_size", int),
    Field("num_key_value_heads", int),
    Field("head_dim", int),
    Field("attention_bias", bool, True, only=(True,)),
    Field("sliding_window", int),
    Field("layer_types", list[str]),
    Field("num_local_experts", int, alias="num_experts"),
    Field("num_experts_per_tok", int, alias="experts_per_token"),
    Field("router_aux_loss_coef", float, 0.001, minimum=0),
    Field("swiglu_alpha", float, 1.702, only=(1.702,)),
    Field("swiglu_limit", float, 7.0, minimum=0),
)
_LAYER, _EXPERT = "model.layers.{layer}.", "mlp.experts.local_experts.{expert}."
WEIGHTS = MappingProxyType(
    {
        **DECODER_WEIGHTS,
        "self_attention.core_attention.softmax_offset": direct(_LAYER + "self_attn.sinks"),
        "mlp.router.weight": direct(_LAYER + "mlp.router.weight"),
        "mlp.router.bias": direct(_LAYER + "mlp.router.bias"),
        _EXPERT + "linear_fc1.weight": stacked_turns(_LAYER + "mlp.experts.gate_up_proj"),
        _EXPERT + "linear_fc1.bias": stacked_turns(_LAYER + "mlp.experts.gate_up_proj_bias"),
        _EXPERT + "linear_fc2.weight": stacked(_LAYER + "mlp.experts.down_proj"),
        _EXPERT + "linear_fc2.bias": stacked(_LAYER + "mlp.experts.down_proj_bias"),
    }
)
KINDS = ("full_attention", "sliding_attention")


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    rule = "the config must give it, since this family's class stretches positions without it too"
    require(rope.scaling is not None, "rope_scaling", None, rule)
    kinds, layers = hf["layer_types"], hf["num_hidden_layers"]
    require(len(kinds) == layers, "layer_types", kinds, f"must name num_hidden_layers={layers} layers")
    require(all(kind in KINDS for kind in kinds), "layer_types", kinds, f"must hold only {' and '.join(KINDS)}")
    experts = Moe(
        experts=hf["num_local_experts"],
        topk=hf["num_experts_per_tok"],
        ffn_hidden=hf["intermediate_size"],
        aux_loss=hf["router_aux_loss_coef"],
        activation="shifted_swiglu",
        limit=hf["swiglu_limit"],
        bias=True,
        router_bias=True,
    )
    windows = dict(zip(KINDS, (None, hf["sliding_window"]), strict=True))
    blocks = {
        kind: Block(
            mixer=attention_of(hf, rope, qkv_bias=True, out_bias=True, sinks=True, window=window), feed_forward=experts
        )
        for kind, window in windows.items()
    }
    return decoder_of(hf, tuple(blocks[kind] for kind in kinds))


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    experts = first_feed_forward(spec, Moe)
    windows = [block.mixer.window for block in spec.layers() if isinstance(block.mixer, Attention)]
    return {
        **decoder_config(spec),
        "intermediate_size": experts.ffn_hidden,
        "attention_bias": True,
        "sliding_window": next((window for window in windows if window), 1),
        "layer_types": [KINDS[window is not None] for window in windows],
        "num_local_experts": experts.experts,
        "num_experts_per_tok": experts.topk,
        "router_aux_loss_coef": experts.aux_loss,
        "swiglu_limit": experts.limit,
    }


GPT_OSS = Family(
    name="gpt_oss",
    architectures=("GptOssForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Moe,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=WEIGHTS,
)
