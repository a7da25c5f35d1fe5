"""Ling 2.0 and Ring (Bailing-MoE-V2): one projection for all heads, which turn in part, and DeepSeek-V3's experts."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from ridgeline.core.model import Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    DECODER_WEIGHTS,
    DEEPSEEK_EXPERTS,
    attention_of,
    decoder_config,
    first_attention,
)
from ridgeline.models.families.deepseek_v3 import sigmoid_config, sigmoid_of
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_rope import ROTARY_DIM_FIELDS, rope_of_dims
from ridgeline.models.hf_template import direct, packed_qkv

FIELDS = (
    *DECODER_FIELDS,
    Field("num_key_value_heads", int),
    Field("head_dim", int | None, None),
    *ROTARY_DIM_FIELDS,
    Field("use_qkv_bias", bool, False),
    Field("use_bias", bool, False),
    Field("use_qk_norm", bool, True),
    Field("intermediate_size", int),
    Field("moe_intermediate_size", int),
    Field("first_k_dense_replace", int, minimum=0),
    Field("num_experts", int),
    Field("num_shared_experts", int | None, None),
    Field("moe_shared_expert_intermediate_size", int | None, None),
    Field("num_experts_per_tok", int),
    Field("routed_scaling_factor", float, 1.0, minimum=0),
    Field("n_group", int),
    Field("topk_group", int),
    Field("num_nextn_predict_layers", int, 0, minimum=0),
    Field("score_function", str, "sigmoid", only=("sigmoid",)),
    Field("norm_topk_prob", bool, True, only=(True,)),
    Field("moe_router_enable_expert_bias", bool, True, only=(True,)),
    Field("embedding_dropout", float, 0.0, only=(0.0,)),
    Field("output_dropout", float, 0.0, only=(0.0,)),
    Field("norm_head", bool, False, only=(False,)),
    Field("norm_softmax", bool, False, only=(False,)),
)
NAMES: Mapping[str, str] = MappingProxyType(
    {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"}
)
"""DeepSeek's names of fields, and this family's."""

UNSAID = ("moe_layer_freq", "scoring_func", "topk_method", "norm_topk_prob")


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    attention = attention_of(hf, rope, qkv_bias=hf["use_qkv_bias"], out_bias=hf["use_bias"], qk_norm=hf["use_qk_norm"])
    attention = attrs.evolve(attention, rope=rope_of_dims(rope, hf, attention.head_dim))
    shared, width = hf["num_shared_experts"], hf["moe_shared_expert_intermediate_size"]
    whole = (shared or 0) * hf["moe_intermediate_size"]
    rule = f"must be num_shared_experts*moe_intermediate_size={whole}"
    require(width in (None, whole), "moe_shared_expert_intermediate_size", width, rule)
    renamed = {theirs: hf[ours] for theirs, ours in NAMES.items()}
    return sigmoid_of({**hf, **renamed, "aux_loss_alpha": 0.0, "seq_aux": False}, attention)


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    attention = first_attention(spec)
    experts = {NAMES.get(name, name): value for name, value in sigmoid_config(spec).items() if name not in UNSAID}
    return {
        **decoder_config(spec),
        **experts,
        "use_qkv_bias": attention.qkv_bias,
        "use_bias": attention.out_bias,
        "use_qk_norm": attention.qk_norm,
        "norm_topk_prob": True,
        "score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
    }


_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "attention."
BAILING_MOE = Family(
    name="bailing_moe",
    architectures=("BailingMoeV2ForCausalLM",),
    fields=FIELDS,
    rope_base=600000.0,
    rotary_share=1.0,
    feed_forwards=(Moe, Mlp),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=MappingProxyType(
        {
            **DECODER_WEIGHTS,
            **DEEPSEEK_EXPERTS,
            "embedding.word_embeddings.weight": direct("model.word_embeddings.weight"),
            "self_attention.linear_qkv.weight": packed_qkv(_ATTENTION + "query_key_value.weight"),
            "self_attention.linear_qkv.bias": packed_qkv(_ATTENTION + "query_key_value.bias"),
            "self_attention.q_layernorm.weight": direct(_ATTENTION + "query_layernorm.weight"),
            "self_attention.k_layernorm.weight": direct(_ATTENTION + "key_layernorm.weight"),
            "self_attention.linear_proj.weight": direct(_ATTENTION + "dense.weight"),
            "self_attention.linear_proj.bias": direct(_ATTENTION + "dense.bias"),
            "mlp.router.expert_bias": direct(_LAYER + "mlp.gate.expert_bias"),
            "mtp.final_layernorm.weight": direct(_LAYER + "final_layernorm.weight"),
        }
    ),
)
