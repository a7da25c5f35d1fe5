"""What families with Mixtral's sparse blocks share: experts in every layer, and their names."""

from typing import Any

from ridgeline.core.model import Moe
from ridgeline.models.families.decoder import moe_weights, router_losses
from ridgeline.models.family import Field, Values

EXPERT_FIELDS = (
    Field("intermediate_size", int),
    Field("num_local_experts", int, alias="num_experts"),
    Field("num_experts_per_tok", int),
    Field("router_aux_loss_coef", float, 0.001, minimum=0),
    Field("router_z_loss_coef", float, 0.0, minimum=0),
)

BLOCK_SPARSE_WEIGHTS = moe_weights(
    router="block_sparse_moe.gate.weight",
    gate="block_sparse_moe.experts.{expert}.w1.weight",
    up="block_sparse_moe.experts.{expert}.w3.weight",
    down="block_sparse_moe.experts.{expert}.w2.weight",
)


def experts_of(hf: Values, **traits: Any) -> Moe:
    """The experts of a layer; ``traits`` are further ones."""
    return Moe(
        experts=hf["num_local_experts"],
        topk=hf["num_experts_per_tok"],
        ffn_hidden=hf["intermediate_size"],
        aux_loss=hf["router_aux_loss_coef"],
        z_loss=hf["router_z_loss_coef"],
        **traits,
    )


def experts_config(experts: Moe) -> dict[str, Any]:
    """The fields that ``experts_of`` reads."""
    return {
        **router_losses(experts),
        "intermediate_size": experts.ffn_hidden,
        "num_local_experts": experts.experts,
        "num_experts_per_tok": experts.topk,
    }
