"""Mistral and Magistral: Llama with a head size of its own, and a window in all layers or none."""

from typing import Any

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
from ridgeline.models.family import Family, Field, Values

FIELDS = (
    *DECODER_FIELDS,
    Field("intermediate_size", int),
    Field("num_key_value_heads", int),
    Field("head_dim", int | None, None),
    Field("sliding_window", int | None, null_is_value=True),
    Field("layer_types", list | None, None, only=(None,)),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    attention = attention_of(hf, rope, window=hf["sliding_window"])
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=hf["intermediate_size"]))
    return decoder_of(hf, (block,) * hf["num_hidden_layers"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    ffn, window = first_feed_forward(spec, Mlp).ffn_hidden, first_attention(spec).window
    return {**decoder_config(spec), "intermediate_size": ffn, "sliding_window": window}


MISTRAL = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=DECODER_WEIGHTS,
)
