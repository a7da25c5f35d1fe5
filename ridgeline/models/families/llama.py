"""Llama 1 to 3.3, and all that is published as ``LlamaForCausalLM``; Aquila is Llama by another name."""

from typing import Any

import attrs

from ridgeline.core.model import Block, Mlp, ModelSpec, Rope
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

FIELDS = (
    *DECODER_FIELDS,
    Field("intermediate_size", int),
    Field("num_key_value_heads", int | None, None),
    Field("head_dim", int | None, None),
    Field("attention_bias", bool, False),
    Field("mlp_bias", bool, False),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    hidden, heads = hf["hidden_size"], hf["num_attention_heads"]
    require(hidden % heads == 0, "hidden_size", hidden, f"must be a multiple of num_attention_heads={heads}")
    attention = attention_of(hf, rope, qkv_bias=hf["attention_bias"], out_bias=hf["attention_bias"])
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=hf["intermediate_size"], bias=hf["mlp_bias"]))
    return decoder_of(hf, (block,) * hf["num_hidden_layers"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    mlp = first_feed_forward(spec, Mlp)
    return {
        **decoder_config(spec),
        "intermediate_size": mlp.ffn_hidden,
        "attention_bias": first_attention(spec).qkv_bias,
        "mlp_bias": mlp.bias,
    }


LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=DECODER_WEIGHTS,
)
AQUILA = attrs.evolve(LLAMA, name="aquila", architectures=("AquilaForCausalLM", "AquilaModel"))
