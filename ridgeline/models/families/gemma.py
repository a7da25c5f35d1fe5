"""Gemma and Gemma 2: zero-centred norms, scaled embeddings, gated GELU; Gemma 2 has soft-caps, more norms, windows."""

import math
from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Rope
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
from ridgeline.models.hf_template import direct

_OWN = ("tie_word_embeddings", "hidden_act")
_TANH = "gelu_pytorch_tanh"
GEMMA_FIELDS = (
    *(field for field in DECODER_FIELDS if field.name not in _OWN),
    Field("tie_word_embeddings", bool, True),
    Field("intermediate_size", int),
    Field("num_key_value_heads", int),
    Field("head_dim", int),
    Field("attention_bias", bool, False, only=(False,)),
    Field("use_bidirectional_attention", bool | None, None, only=(None, False)),
)
FIELDS = (*GEMMA_FIELDS, Field("hidden_act", str, _TANH, only=(_TANH, "gelu")))  # "gelu" was meant as tanh's
FIELDS2 = (
    *GEMMA_FIELDS,
    Field("hidden_activation", str, _TANH, only=(_TANH,)),
    Field("query_pre_attn_scalar", int),
    Field("sliding_window", int),
    Field("layer_types", list[str] | None, None),
    Field("final_logit_softcapping", float | None, minimum=0, null_is_value=True),
    Field("attn_logit_softcapping", float | None, minimum=0, null_is_value=True),
)
KINDS = ("full_attention", "sliding_attention")


def _shell(hf: Values, blocks: tuple[Block, ...], **traits: Any) -> ModelSpec:
    scale = math.sqrt(hf["hidden_size"])
    return decoder_of(hf, blocks, norm="zero_centred_rms", embedding_scale=scale, **traits)


def _mlp(hf: Values) -> Mlp:
    return Mlp(ffn_hidden=hf["intermediate_size"], activation="geglu_tanh")


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    return _shell(hf, (Block(mixer=attention_of(hf, rope), feed_forward=_mlp(hf)),) * hf["num_hidden_layers"])


def _spec2_of(hf: Values, rope: Rope) -> ModelSpec:
    layers = hf["num_hidden_layers"]
    kinds = hf["layer_types"]
    kinds = [KINDS[(i + 1) % 2] for i in range(layers)] if kinds is None else kinds
    require(len(kinds) == layers, "layer_types", kinds, f"must name num_hidden_layers={layers} layers")
    require(all(kind in KINDS for kind in kinds), "layer_types", kinds, f"must hold only {' and '.join(KINDS)}")
    traits = {"scale": hf["query_pre_attn_scalar"] ** -0.5, "softcap": hf["attn_logit_softcapping"]}
    blocks = {
        kind: Block(mixer=attention_of(hf, rope, window=window, **traits), feed_forward=_mlp(hf), norms="sandwich")
        for kind, window in zip(KINDS, (None, hf["sliding_window"]), strict=True)
    }
    return _shell(hf, tuple(blocks[kind] for kind in kinds), logit_softcap=hf["final_logit_softcapping"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    ffn = first_feed_forward(spec, Mlp).ffn_hidden
    return {**decoder_config(spec), "intermediate_size": ffn, "hidden_act": _TANH}


def _config2_of(spec: ModelSpec) -> dict[str, Any]:
    attention = first_attention(spec)
    windows = [block.mixer.window for block in spec.layers() if isinstance(block.mixer, Attention)]
    scale = attention.scale or attention.head_dim**-0.5
    require(scale >= 1e-6, "blocks.mixer.scale", scale, "must be the root of 1/query_pre_attn_scalar, a whole number")
    return {
        **_config_of(spec),
        "hidden_activation": _TANH,
        "query_pre_attn_scalar": round(scale**-2),
        "sliding_window": next((window for window in windows if window), 1),
        "layer_types": [KINDS[window is not None] for window in windows],
        "final_logit_softcapping": spec.logit_softcap,
        "attn_logit_softcapping": attention.softcap,
    }


_LAYER = "model.layers.{layer}."
GEMMA = Family(
    name="gemma",
    architectures=("GemmaForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=DECODER_WEIGHTS,
)
GEMMA2 = Family(
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    fields=FIELDS2,
    feed_forwards=(Mlp,),
    spec_of=_spec2_of,
    config_of=_config2_of,
    weights=MappingProxyType(
        {
            **DECODER_WEIGHTS,
            "post_self_attn_layernorm.weight": direct(_LAYER + "post_attention_layernorm.weight"),
            "pre_mlp_layernorm.weight": direct(_LAYER + "pre_feedforward_layernorm.weight"),
            "post_mlp_layernorm.weight": direct(_LAYER + "post_feedforward_layernorm.weight"),
        }
    ),
)
