"""InternLM3: Llama with one switch for all biases, which its files give by two names."""

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
from ridgeline.models.family import Family, Field, Values, require

FIELDS = (
    *DECODER_FIELDS,
    Field("intermediate_size", int),
    Field("num_key_value_heads", int),
    Field("head_dim", int),
    Field("qkv_bias", bool, False, alias="attention_bias"),
    Field("bias", bool, False, alias="mlp_bias"),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    bias = hf["bias"]
    require(hf["qkv_bias"] == bias, "qkv_bias", hf["qkv_bias"], f"must be bias={bias}, as transformers wants it")
    hidden, heads = hf["hidden_size"], hf["num_attention_heads"]
    require(hidden % heads == 0, "hidden_size", hidden, f"must be a multiple of num_attention_heads={heads}")
    mlp = Mlp(ffn_hidden=hf["intermediate_size"], bias=bias)
    block = Block(mixer=attention_of(hf, rope, qkv_bias=bias, out_bias=bias), feed_forward=mlp)
    return decoder_of(hf, (block,) * hf["num_hidden_layers"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    mlp = first_feed_forward(spec, Mlp)
    return {**decoder_config(spec), "intermediate_size": mlp.ffn_hidden, "qkv_bias": mlp.bias, "bias": mlp.bias}


INTERNLM3 = Family(
    name="internlm3",
    architectures=("InternLM3ForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=DECODER_WEIGHTS,
)
