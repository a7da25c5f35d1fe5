"""GLM-4 and GLM-4-0414: biases on query, key and value, half of each head turns in pairs; the later has more norms."""

from functools import partial
from types import MappingProxyType
from typing import Any, Literal

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
from ridgeline.models.family import Family, Field, Values
from ridgeline.models.hf_template import direct

FIELDS = (
    *DECODER_FIELDS,
    Field("intermediate_size", int),
    Field("num_key_value_heads", int),
    Field("head_dim", int),
    Field("attention_bias", bool, True),
)


def _spec_of(hf: Values, rope: Rope, *, norms: Literal["pre", "sandwich"] = "pre") -> ModelSpec:
    mlp = Mlp(ffn_hidden=hf["intermediate_size"])
    block = Block(mixer=attention_of(hf, rope, qkv_bias=hf["attention_bias"]), feed_forward=mlp, norms=norms)
    return decoder_of(hf, (block,) * hf["num_hidden_layers"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    ffn, bias = first_feed_forward(spec, Mlp).ffn_hidden, first_attention(spec).qkv_bias
    return {**decoder_config(spec), "intermediate_size": ffn, "attention_bias": bias, "pad_token_id": None}


_LAYER = "model.layers.{layer}."
_WEIGHTS = MappingProxyType({**DECODER_WEIGHTS, "mlp.linear_fc1.weight": direct(_LAYER + "mlp.gate_up_proj.weight")})
_NORMS = ("post_self_attn_layernorm.weight", "post_mlp_layernorm.weight")

GLM = Family(
    name="glm",
    architectures=("GlmForCausalLM",),
    fields=FIELDS,
    rotary_share=0.5,
    interleaved=True,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=_WEIGHTS,
)
GLM4 = attrs.evolve(
    GLM,
    name="glm4",
    architectures=("Glm4ForCausalLM",),
    spec_of=partial(_spec_of, norms="sandwich"),
    weights=MappingProxyType({**_WEIGHTS, **{name: direct(_LAYER + name) for name in _NORMS}}),
)
