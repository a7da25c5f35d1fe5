"""Mixtral: experts in every layer, the weights of the chosen ones normalised; one window for all layers, or none."""

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

FIELDS = (
    *DECODER_FIELDS,
    Field("intermediate_size", int),
    Field("num_key_value_heads", int),
    Field("head_dim", int | None, None),
    Field("sliding_window", int | None, None),
    Field("num_local_experts", int, alias="num_experts"),
    Field("num_experts_per_tok", int),
    Field("router_aux_loss_coef", float, 0.001, minimum=0),
    Field("router_z_loss_coef", float, 0.0, minimum=0),
    Field("router_jitter_noise", float, 0.0, only=(0.0,)),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    experts = Moe(
        experts=hf["num_local_experts"],
        topk=hf["num_experts_per_tok"],
        ffn_hidden=hf["intermediate_size"],
        aux_loss=hf["router_aux_loss_coef"],
        z_loss=hf["router_z_loss_coef"],
    )
    block = Block(mixer=attention_of(hf, rope, window=hf["sliding_window"]), feed_forward=experts)
    return decoder_of(hf, (block,) * hf["num_hidden_layers"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    experts = first_feed_forward(spec, Moe)
    return {
        **decoder_config(spec),
        **router_losses(experts),
        "intermediate_size": experts.ffn_hidden,
        "sliding_window": first_attention(spec).window,
        "num_local_experts": experts.experts,
        "num_experts_per_tok": experts.topk,
    }


MIXTRAL = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    fields=FIELDS,
    rope_base=1000000.0,
    feed_forwards=(Moe,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=BLOCK_SPARSE_WEIGHTS,
)
