"""Seed-OSS: Llama with a head size of its own, biases on query, key and value, and more where a config says so."""

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
    *(field for field in DECODER_FIELDS if field.name != "attention_dropout"),
    Field("intermediate_size", int),
    Field("num_key_value_heads", int),
    Field("head_dim", int | None, 128),
    Field("attention_bias", bool, True),
    Field("attention_out_bias", bool, False),
    Field("mlp_bias", bool, False),
    # Of training with transformers; here a job says how it trains.
    Field("attention_dropout", float, 0.1, minimum=0),
    Field("residual_dropout", float, 0.1, minimum=0),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    attention = attention_of(hf, rope, qkv_bias=hf["attention_bias"], out_bias=hf["attention_out_bias"])
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=hf["intermediate_size"], bias=hf["mlp_bias"]))
    return decoder_of(hf, (block,) * hf["num_hidden_layers"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    attention, mlp = first_attention(spec), first_feed_forward(spec, Mlp)
    return {
        **decoder_config(spec),
        "intermediate_size": mlp.ffn_hidden,
        "attention_bias": attention.qkv_bias,
        "attention_out_bias": attention.out_bias,
        "mlp_bias": mlp.bias,
        "residual_dropout": 0.0,
    }


SEED_OSS = Family(
    name="seed_oss",
    architectures=("SeedOssForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=DECODER_WEIGHTS,
)
