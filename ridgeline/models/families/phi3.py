"""Phi-3, Phi-3.5-mini and Phi-4: one projection for queries, keys and values, one for gate and up; LongRoPE."""

from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Block, LongRope, Mlp, ModelSpec, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    DECODER_WEIGHTS,
    attention_of,
    decoder_config,
    decoder_of,
    first_attention,
    first_feed_forward,
)
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import direct, packed_qkv

FIELDS = (
    *DECODER_FIELDS,
    Field("intermediate_size", int),
    Field("num_key_value_heads", int | None, None),
    Field("original_max_position_embeddings", int, 4096),
    Field("sliding_window", int | None, None),
    Field("attention_bias", bool, False, only=(False,)),
    Field("embd_pdrop", float, 0.0, only=(0.0,)),
    Field("resid_pdrop", float, 0.0, only=(0.0,)),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    kind = None if rope.scaling is None else rope.scaling.kind
    require(kind in (None, LongRope.kind), "rope_scaling.rope_type", kind, "must be 'longrope'; use it or none")
    if isinstance(rope.scaling, LongRope):
        within, original = rope.scaling.original_max_position, hf["original_max_position_embeddings"]
        rule = f"which is what counts, contradicts {within} beside the factors"
        require(within == original, "original_max_position_embeddings", original, rule, "give the same in both places")
    attention = attention_of({**hf, "head_dim": None}, rope, window=hf["sliding_window"])
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=hf["intermediate_size"]))
    return decoder_of(hf, (block,) * hf["num_hidden_layers"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    attention = first_attention(spec)
    scaling = attention.rope.scaling
    original = scaling.original_max_position if isinstance(scaling, LongRope) else spec.max_position
    return {
        **{name: value for name, value in decoder_config(spec).items() if name != "head_dim"},
        "intermediate_size": first_feed_forward(spec, Mlp).ffn_hidden,
        "original_max_position_embeddings": original,
        "sliding_window": attention.window,
        "attention_bias": False,
        "pad_token_id": None,
    }


_LAYER = "model.layers.{layer}."
PHI3 = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    fields=FIELDS,
    rotary_share=1.0,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=MappingProxyType(
        {
            **DECODER_WEIGHTS,
            "self_attention.linear_qkv.weight": packed_qkv(_LAYER + "self_attn.qkv_proj.weight"),
            "mlp.linear_fc1.weight": direct(_LAYER + "mlp.gate_up_proj.weight"),
        }
    ),
)
