"""Phi-3.5-MoE: experts chosen by SparseMixer, LayerNorms, biases of attention and of the head, LongRoPE.

The class of transformers 5.23 stretches by ``short_factor`` at any length; here ``long_factor`` stretches long
sequences, as in the class that was published with the weights.
"""

from types import MappingProxyType
from typing import Any

import attrs

from ridgeline.core.model import Block, LongRope, ModelSpec, Moe, Rope
from ridgeline.models.families.block_sparse import BLOCK_SPARSE_WEIGHTS, EXPERT_FIELDS, experts_config, experts_of
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    attention_of,
    decoder_config,
    decoder_of,
    first_attention,
    first_feed_forward,
)
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import direct

FIELDS = (
    *DECODER_FIELDS,
    *(field for field in EXPERT_FIELDS if field.name != "num_experts_per_tok"),
    Field("num_experts_per_tok", int, only=(2,)),
    Field("num_key_value_heads", int),
    Field("head_dim", int | None, None),
    Field("attention_bias", bool, False),
    Field("lm_head_bias", bool, False),
    Field("original_max_position_embeddings", int | None, None),
    Field("sliding_window", int | None, None),
    Field("router_jitter_noise", float, 0.01, minimum=0),
    Field("input_jitter_noise", float, 0.0, minimum=0),
    Field("router_sampling", bool, True),  # ours: the classes always draw in training
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    scaling, bias = rope.scaling, hf["attention_bias"]
    kind = None if scaling is None else scaling.kind
    require(kind in (None, LongRope.kind), "rope_scaling.rope_type", kind, "must be 'longrope'; use it or none")
    if isinstance(scaling, LongRope):
        scales = {"short_mscale": scaling.short_mscale, "long_mscale": scaling.long_mscale}
        for name, scale in scales.items():
            require(scale is not None, f"rope_scaling.{name}", scale, "the config must give it")
    experts = experts_of(
        hf,
        score="sparsemixer",
        normalize_topk=False,
        nearness=hf["router_jitter_noise"],
        sampled=hf["router_sampling"],
        input_jitter=hf["input_jitter_noise"],
    )
    attention = attention_of(hf, rope, qkv_bias=bias, out_bias=bias, window=hf["sliding_window"])
    block = Block(mixer=attention, feed_forward=experts)
    model = decoder_of(hf, (block,) * hf["num_hidden_layers"], norm="layer")
    return attrs.evolve(model, head_bias=hf["lm_head_bias"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    attention, experts = first_attention(spec), first_feed_forward(spec, Moe)
    scaling = attention.rope.scaling
    original = scaling.original_max_position if isinstance(scaling, LongRope) else spec.max_position
    config = decoder_config(spec)
    if attention.head_dim * attention.heads == spec.hidden:
        del config["head_dim"]
    return {
        **config,
        **experts_config(experts),
        "attention_bias": attention.qkv_bias,
        "lm_head_bias": spec.head_bias,
        "original_max_position_embeddings": original,
        "sliding_window": attention.window,
        "router_jitter_noise": experts.nearness,
        "input_jitter_noise": experts.input_jitter,
        **({} if experts.sampled else {"router_sampling": False}),
    }


_LAYER = "model.layers.{layer}."
PHIMOE = Family(
    name="phimoe",
    architectures=("PhimoeForCausalLM", "PhiMoEForCausalLM"),
    fields=FIELDS,
    rope_base=1000000.0,
    feed_forwards=(Moe,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=MappingProxyType(
        {
            **BLOCK_SPARSE_WEIGHTS,
            "input_layernorm.bias": direct(_LAYER + "input_layernorm.bias"),
            "pre_mlp_layernorm.bias": direct(_LAYER + "post_attention_layernorm.bias"),
            "decoder.final_layernorm.bias": direct("model.norm.bias"),
            "output_layer.bias": direct("lm_head.bias"),
        }
    ),
)
