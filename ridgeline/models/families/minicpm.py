"""MiniCPM: Llama with scaled embeddings, layers and logits."""

from typing import Any

from ridgeline.core.model import Block, Mlp, ModelSpec, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    DECODER_WEIGHTS,
    attention_of,
    decoder_config,
    decoder_of,
    first_feed_forward,
)
from ridgeline.models.families.scaled import SCALE_FIELDS, scales_config, scales_of
from ridgeline.models.family import Family, Field, Values

_OWN = ("tie_word_embeddings", "initializer_range")
FIELDS = (
    *(field for field in DECODER_FIELDS if field.name not in _OWN),
    *SCALE_FIELDS,
    Field("intermediate_size", int),
    Field("num_key_value_heads", int | None, None),
    Field("tie_word_embeddings", bool),
    Field("initializer_range", float, minimum=0),
    Field("attention_bias", bool, False, only=(False,)),
    Field("num_experts", int, 0, only=(0,)),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    attention = attention_of({**hf, "head_dim": None}, rope)
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=hf["intermediate_size"]))
    return decoder_of(hf, (block,) * hf["num_hidden_layers"], **scales_of(hf))


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    shell = {name: value for name, value in decoder_config(spec).items() if name != "head_dim"}
    return {**shell, **scales_config(spec), "intermediate_size": first_feed_forward(spec, Mlp).ffn_hidden}


MINICPM = Family(
    name="minicpm",
    architectures=("MiniCPMForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=DECODER_WEIGHTS,
)
