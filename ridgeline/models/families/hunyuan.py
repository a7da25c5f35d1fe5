"""Hunyuan of 0.5B to 7B and A13B: heads normed after they turn, a base stretched by a constant, one shared expert."""

from types import MappingProxyType
from typing import Any

import attrs

from ridgeline.core.errors import SpecError
from ridgeline.core.model import Attention, Block, DynamicRope, Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    DECODER_WEIGHTS,
    attention_of,
    decoder_config,
    decoder_of,
    first_attention,
    first_feed_forward,
    moe_weights,
)
from ridgeline.models.family import Family, Field, Values, read_fields, require
from ridgeline.models.hf_template import direct, gate_up

HUNYUAN_FIELDS = (
    *(field for field in DECODER_FIELDS if field.name != "attention_dropout"),
    Field("attention_dropout", float, 0.0, minimum=0),  # some files have one, which training here leaves out
    Field("intermediate_size", int),
    Field("num_key_value_heads", int | None, None),
    Field("head_dim", int | None, None, alias="attention_head_dim"),
    Field("attention_bias", bool, False),
    Field("mlp_bias", bool, False, only=(False,)),
    Field("rope_scaling", dict | None, None),
    Field("rope_parameters", dict | None, None),
)
V1_FIELDS = (
    *HUNYUAN_FIELDS,
    Field("use_qk_norm", bool, True, only=(True,)),
    Field("use_cla", bool, False, only=(False,)),
)
MOE_FIELDS = (
    *V1_FIELDS,
    Field("num_experts", int | list[int], 1, alias="num_local_experts"),
    Field("moe_topk", int | list[int], 1, alias="num_experts_per_tok"),
    Field("num_shared_expert", int | list[int], 1),
    Field("moe_intermediate_size", int | list[int] | None, None),
    Field("moe_layer_num_skipped", int, 0, minimum=0, only=(0,)),
    Field("use_mixed_mlp_moe", bool, True, only=(True,)),
)


def hunyuan_attention(hf: Values, rope: Rope, **traits: Any) -> Attention:
    """The attention of a layer, whose positions may be stretched by a constant ``alpha``."""
    where = "rope_parameters" if hf["rope_parameters"] else "rope_scaling"
    values, problems = read_fields(hf[where] or {}, (Field("alpha", float | None, None, minimum=0),))
    if problems:
        raise SpecError([problem.under(where) for problem in problems])
    if values["alpha"] and isinstance(rope.scaling, DynamicRope):
        rope = attrs.evolve(rope, scaling=attrs.evolve(rope.scaling, alpha=values["alpha"]))
    return attention_of(hf, rope, qkv_bias=hf["attention_bias"], out_bias=hf["attention_bias"], **traits)


def hunyuan_config(spec: ModelSpec) -> dict[str, Any]:
    """The fields that ``hunyuan_attention`` reads, and those around the layers."""
    attention, config = first_attention(spec), decoder_config(spec)
    scaling = attention.rope.scaling
    if isinstance(scaling, DynamicRope) and scaling.alpha is not None:
        config["rope_scaling"] = {**config["rope_scaling"], "alpha": scaling.alpha}
    return {**config, "attention_bias": attention.qkv_bias, "use_qk_norm": attention.qk_norm}


def of_all_layers(hf: Values, name: str) -> Any:
    """A field that may be a list with a value for each layer, which must be one."""
    value = hf[name]
    if not isinstance(value, list):
        return value
    require(len(set(map(str, value))) == 1, name, value, "must be the same for every layer")
    return value[0]


def _of_v1(hf: Values, rope: Rope, feed_forward: Mlp | Moe) -> ModelSpec:
    attention = hunyuan_attention(hf, rope, qk_norm=True, qk_norm_after_rope=True)
    return decoder_of(hf, (Block(mixer=attention, feed_forward=feed_forward),) * hf["num_hidden_layers"])


def _dense_of(hf: Values, rope: Rope) -> ModelSpec:
    return _of_v1(hf, rope, Mlp(ffn_hidden=hf["intermediate_size"]))


def _dense_config(spec: ModelSpec) -> dict[str, Any]:
    return {**hunyuan_config(spec), "intermediate_size": first_feed_forward(spec, Mlp).ffn_hidden}


def _moe_of(hf: Values, rope: Rope) -> ModelSpec:
    width, shared = hf["intermediate_size"], of_all_layers(hf, "num_shared_expert")
    expert = of_all_layers(hf, "moe_intermediate_size")
    rule = f"must be intermediate_size={width}, which transformers' class takes for experts too"
    require(expert in (None, width), "moe_intermediate_size", expert, rule)
    require(shared == 1, "num_shared_expert", shared, "must be 1, as in transformers' class")
    experts = Moe(
        experts=of_all_layers(hf, "num_experts"),
        topk=of_all_layers(hf, "moe_topk"),
        ffn_hidden=width,
        shared_ffn=width,
    )
    return _of_v1(hf, rope, experts)


def _moe_config(spec: ModelSpec) -> dict[str, Any]:
    experts = first_feed_forward(spec, Moe)
    return {
        **hunyuan_config(spec),
        "intermediate_size": experts.ffn_hidden,
        "num_experts": experts.experts,
        "moe_topk": experts.topk,
    }


_LAYER = "model.layers.{layer}."
_HEADS = {
    "self_attention.q_layernorm.weight": direct(_LAYER + "self_attn.query_layernorm.weight"),
    "self_attention.k_layernorm.weight": direct(_LAYER + "self_attn.key_layernorm.weight"),
}
_SHARED = _LAYER + "mlp.shared_mlp."
HUNYUAN_WEIGHTS = MappingProxyType(
    {
        **moe_weights(
            router="mlp.gate.wg.weight",
            gate="mlp.experts.{expert}.gate_proj.weight",
            up="mlp.experts.{expert}.up_proj.weight",
            down="mlp.experts.{expert}.down_proj.weight",
        ),
        **_HEADS,
        "mlp.shared_experts.linear_fc1.weight": gate_up(_SHARED + "gate_proj.weight", _SHARED + "up_proj.weight"),
        "mlp.shared_experts.linear_fc2.weight": direct(_SHARED + "down_proj.weight"),
    }
)

HUNYUAN_V1_DENSE = Family(
    name="hunyuan_v1_dense",
    architectures=("HunYuanDenseV1ForCausalLM",),
    fields=V1_FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_dense_of,
    config_of=_dense_config,
    weights=MappingProxyType({**DECODER_WEIGHTS, **_HEADS}),
)
HUNYUAN_V1_MOE = Family(
    name="hunyuan_v1_moe",
    architectures=("HunYuanMoEV1ForCausalLM",),
    fields=MOE_FIELDS,
    feed_forwards=(Moe,),
    spec_of=_moe_of,
    config_of=_moe_config,
    weights=HUNYUAN_WEIGHTS,
)
