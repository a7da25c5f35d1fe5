"""Grok-1 in its port to Hugging Face's library: scaled ends, norms on both sides, capped scores, gated GELU experts.

xAI's own code in JAX approximates the GELU by tanh, the port's class does not: here it is the port's.
"""

from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Block, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    attention_of,
    decoder_config,
    decoder_of,
    first_attention,
    first_feed_forward,
    router_losses,
)
from ridgeline.models.family import Family, Field, Values
from ridgeline.models.hf_template import direct, gate_up, grouped_qkv

_OWN = ("hidden_act", "attention_dropout", "rms_norm_eps", "tie_word_embeddings")
FIELDS = (
    *(field for field in DECODER_FIELDS if field.name not in _OWN),
    Field("rms_norm_eps", float, 1e-5, minimum=0),
    Field("tie_word_embeddings", bool, True),
    Field("intermediate_size", int),
    Field("num_key_value_heads", int),
    Field("attn_output_multiplier", float, 1.0, minimum=0),
    Field("max_attn_value", float, 30.0, minimum=0),
    Field("embedding_multiplier_scale", float, 1.0, minimum=0),
    Field("output_multiplier_scale", float, 1.0, minimum=0),
    Field("num_experts", int, 8),
    Field("num_experts_per_tok", int, 2),
    Field("router_aux_loss_coef", float, 0.001, minimum=0),
    Field("rope_theta", float | None, None, only=(None,)),  # its class always has 10000
    *(Field(name, dict | None, None, only=(None,)) for name in ("rope_scaling", "rope_parameters")),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    experts = Moe(
        experts=hf["num_experts"],
        topk=hf["num_experts_per_tok"],
        ffn_hidden=hf["intermediate_size"],
        activation="geglu",
        normalize_topk=False,
        aux_loss=hf["router_aux_loss_coef"],
    )
    scale, cap = hf["attn_output_multiplier"], hf["max_attn_value"]
    attention = attention_of({**hf, "head_dim": None}, rope, scale=scale, softcap=cap)
    block = Block(mixer=attention, feed_forward=experts, norms="sandwich")
    return decoder_of(
        hf,
        (block,) * hf["num_hidden_layers"],
        embedding_scale=hf["embedding_multiplier_scale"],
        logit_scale=hf["output_multiplier_scale"],
    )


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    experts, attention = first_feed_forward(spec, Moe), first_attention(spec)
    unknown = ("hidden_act", "attention_dropout", "head_dim", "rope_theta", "rope_scaling")
    return {
        **{name: value for name, value in decoder_config(spec).items() if name not in unknown},
        **router_losses(experts),
        "intermediate_size": experts.ffn_hidden,
        "attn_output_multiplier": attention.scale,
        "max_attn_value": attention.softcap,
        "embedding_multiplier_scale": spec.embedding_scale,
        "output_multiplier_scale": spec.logit_scale,
        "num_experts": experts.experts,
        "num_experts_per_tok": experts.topk,
    }


_LAYER = "model.layers.{layer}."
_EXPERT, _OURS = _LAYER + "moe_block.experts.{expert}.", "mlp.experts.local_experts.{expert}."
GROK1 = Family(
    name="grok-1",
    architectures=("Grok1ModelForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Moe,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=MappingProxyType(
        {
            "embedding.word_embeddings.weight": direct("model.embed_tokens.weight"),
            "input_layernorm.weight": direct(_LAYER + "pre_attn_norm.scale"),
            "self_attention.linear_qkv.weight": grouped_qkv(*(_LAYER + f"attn.{x}_proj.weight" for x in "qkv")),
            "self_attention.linear_proj.weight": direct(_LAYER + "attn.o_proj.weight"),
            "post_self_attn_layernorm.weight": direct(_LAYER + "post_attn_norm.scale"),
            "pre_mlp_layernorm.weight": direct(_LAYER + "pre_moe_norm.scale"),
            "mlp.router.weight": direct(_LAYER + "moe_block.gate.weight"),
            _OURS + "linear_fc1.weight": gate_up(_EXPERT + "linear.weight", _EXPERT + "linear_v.weight"),
            _OURS + "linear_fc2.weight": direct(_EXPERT + "linear_1.weight"),
            "post_mlp_layernorm.weight": direct(_LAYER + "post_moe_norm.scale"),
            "decoder.final_layernorm.weight": direct("model.norm.scale"),
            "output_layer.weight": direct("lm_head.weight"),
        }
    ),
)
