"""MiniMax-M2: one norm over all query heads and one over all key heads, sigmoid experts with a bias moved by load."""

from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Block, ModelSpec, Moe, Rope
from ridgeline.models.families.block_sparse import BLOCK_SPARSE_WEIGHTS, EXPERT_FIELDS, experts_config, experts_of
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    attention_of,
    decoder_config,
    decoder_of,
    first_attention,
    first_feed_forward,
)
from ridgeline.models.family import Family, Field, Values
from ridgeline.models.hf_rope import ROTARY_DIM_FIELDS, rope_of_dims
from ridgeline.models.hf_template import direct

FIELDS = (
    *DECODER_FIELDS,
    *EXPERT_FIELDS,
    Field("num_key_value_heads", int),
    Field("head_dim", int),
    *ROTARY_DIM_FIELDS,
    Field("use_qk_norm", bool, True, only=(True,)),
    Field("qk_norm_type", str, "per_layer", only=("per_layer",)),
    Field("scoring_func", str, "sigmoid", only=("sigmoid",)),
    Field("use_routing_bias", bool, True, only=(True,)),
    Field("shared_intermediate_size", int, 0, only=(0,)),
    Field("router_jitter_noise", float, 0.0, only=(0.0,)),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    attention = attention_of(hf, rope_of_dims(rope, hf, hf["head_dim"]), qk_norm=True, qk_norm_over="layer")
    block = Block(mixer=attention, feed_forward=experts_of(hf, score="sigmoid", expert_bias=True))
    return decoder_of(hf, (block,) * hf["num_hidden_layers"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    attention = first_attention(spec)
    return {
        **decoder_config(spec),
        **experts_config(first_feed_forward(spec, Moe)),
        "rotary_dim": round(attention.rope.share * attention.head_dim),
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
