"""MiniMax-M2: one norm over all query heads and one over all key heads, sigmoid experts with a bias moved by load."""

from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Block, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    BLOCK_SPARSE_WEIGHTS,
    DECODER_FIELDS,
    attention_of,
    decoder_config,
    decoder_of,
    first_attention,
    first_feed_forward,
    router_losses,
)
from ridgeline.models.family import Family, Field, Values
from ridgeline.models.hf_rope import ROTARY_DIM_FIELDS, rope_of_dims
from ridgeline.models.hf_template import direct

FIELDS = (
    *DECODER_FIELDS,
    Field("intermediate_size", int),
    Field("num_key_value_heads", int),
    Field("head_dim", int),
    *ROTARY_DIM_FIELDS,
    Field("use_qk_norm", bool, True, only=(True,)),
    Field("qk_norm_type", str, "per_layer", only=("per_layer",)),
    Field("num_local_experts", int, alias="num_experts"),
    Field("num_experts_per_tok", int),
    Field("scoring_func", str, "sigmoid", only=("sigmoid",)),
    Field("use_routing_bias", bool, True, only=(True,)),
    Field("shared_intermediate_size", int, 0, only=(0,)),
    Field("router_aux_loss_coef", float, 0.001, minimum=0),
    Field("router_jitter_noise", float, 0.0, only=(0.0,)),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    experts = Moe(
        experts=hf["num_local_experts"],
        topk=hf["num_experts_per_tok"],
        ffn_hidden=hf["intermediate_size"],
        aux_loss=hf["router_aux_loss_coef"],
        score="sigmoid",
        expert_bias=True,
    )
    block = Block(
        mixer=attention_of(hf, rope_of_dims(rope, hf, hf["head_dim"]), qk_norm=True, qk_norm_over="layer"),
        feed_forward=experts,
    )
    return decoder_of(hf, (block,) * hf["num_hidden_layers"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    experts, attention = first_feed_forward(spec, Moe), first_attention(spec)
    return {
        **decoder_config(spec),
        **router_losses(experts),
        "intermediate_size": experts.ffn_hidden,
        "rotary_dim": round(attention.rope.share * attention.head_dim),
        "num_local_experts": experts.experts,
        "num_experts_per_tok": experts.topk,
        "use_qk_norm": True,
        "qk_norm_type": "per_layer",
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "shared_intermediate_size": 0,
    }


MINIMAX_M2 = Family(
    name="minimax_m2",
    architectures=("MiniMaxM2ForCausalLM",),
    fields=FIELDS,
    rope_base=5000000.0,
    rotary_share=1.0,
    feed_forwards=(Moe,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=MappingProxyType(
        {
            **BLOCK_SPARSE_WEIGHTS,
            "mlp.router.expert_bias": direct("model.layers.{layer}.block_sparse_moe.e_score_correction_bias"),
        }
    ),
)
