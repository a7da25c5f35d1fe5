"""What the Qwen families with experts share: experts in each ``decoder_sparse_step``-th layer, some left out."""

from typing import Any

from ridgeline.core.model import Mlp, ModelSpec, Moe
from ridgeline.models.families.decoder import first_feed_forward, router_losses
from ridgeline.models.family import Field, Values, require

SPARSE_FIELDS = (
    Field("intermediate_size", int | None, None),
    Field("num_experts", int, alias="num_local_experts"),
    Field("num_experts_per_tok", int),
    Field("moe_intermediate_size", int),
    Field("norm_topk_prob", bool, False),
    Field("router_aux_loss_coef", float, 0.001, minimum=0),
    Field("router_z_loss_coef", float, 0.0, minimum=0),
    Field("decoder_sparse_step", int, 1),
    Field("mlp_only_layers", list[int] | None, None),
)


def feed_forwards_of(hf: Values, **traits: Any) -> tuple[Mlp | Moe, ...]:
    """The feed-forward of every layer; ``traits`` are further ones of the experts."""
    experts = Moe(
        experts=hf["num_experts"],
        topk=hf["num_experts_per_tok"],
        ffn_hidden=hf["moe_intermediate_size"],
        normalize_topk=hf["norm_topk_prob"],
        aux_loss=hf["router_aux_loss_coef"],
        z_loss=hf["router_z_loss_coef"],
        **traits,
    )
    layers = range(hf["num_hidden_layers"])
    dense = {i for i in layers if i in (hf["mlp_only_layers"] or ()) or (i + 1) % hf["decoder_sparse_step"]}
    if not dense:
        return (experts,) * len(layers)
    width = hf["intermediate_size"]
    require(width is not None, "intermediate_size", width, f"the config must give it for dense layers {sorted(dense)}")
    mlp = Mlp(ffn_hidden=width)
    return tuple(mlp if i in dense else experts for i in layers)


def feed_forwards_config(spec: ModelSpec) -> dict[str, Any]:
    """The fields that ``feed_forwards_of`` reads."""
    parts = [block.feed_forward for block in spec.layers()]
    dense = {i: mlp.ffn_hidden for i, mlp in enumerate(parts) if isinstance(mlp, Mlp)}
    experts = first_feed_forward(spec, Moe)
    return {
        **router_losses(experts),
        **({"intermediate_size": next(iter(dense.values()))} if dense else {}),
        "num_experts": experts.experts,
        "num_experts_per_tok": experts.topk,
        "moe_intermediate_size": experts.ffn_hidden,
        "norm_topk_prob": experts.normalize_topk,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(dense),
    }
