"""Qwen3-MoE: Qwen3's attention; experts in each ``decoder_sparse_step``-th layer, ``mlp_only_layers`` left out."""

from typing import Any

from ridgeline.core.model import Block, Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    attention_of,
    decoder_config,
    decoder_of,
    first_attention,
    first_feed_forward,
    moe_weights,
    router_losses,
)
from ridgeline.models.family import Family, Field, Values, require

FIELDS = (
    *DECODER_FIELDS,
    Field("intermediate_size", int | None, None),
    Field("num_key_value_heads", int),
    Field("head_dim", int | None, None),
    Field("attention_bias", bool, False),
    Field("use_sliding_window", bool, False),
    Field("sliding_window", int | None, None),
    Field("num_experts", int, alias="num_local_experts"),
    Field("num_experts_per_tok", int),
    Field("moe_intermediate_size", int),
    Field("norm_topk_prob", bool, False),
    Field("router_aux_loss_coef", float, 0.001, minimum=0),
    Field("router_z_loss_coef", float, 0.0, minimum=0),
    Field("decoder_sparse_step", int, 1),
    Field("mlp_only_layers", list | None, None),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    attention = attention_of(
        hf,
        rope,
        qkv_bias=hf["attention_bias"],
        out_bias=hf["attention_bias"],
        qk_norm=True,
        window=hf["sliding_window"] if hf["use_sliding_window"] else None,
    )
    experts = Moe(
        experts=hf["num_experts"],
        topk=hf["num_experts_per_tok"],
        ffn_hidden=hf["moe_intermediate_size"],
        normalize_topk=hf["norm_topk_prob"],
        aux_loss=hf["router_aux_loss_coef"],
        z_loss=hf["router_z_loss_coef"],
    )
    sparse = Block(mixer=attention, feed_forward=experts)
    layers = range(hf["num_hidden_layers"])
    dense = {i for i in layers if i in (hf["mlp_only_layers"] or ()) or (i + 1) % hf["decoder_sparse_step"]}
    if not dense:
        return decoder_of(hf, (sparse,) * len(layers))
    width = hf["intermediate_size"]
    require(width is not None, "intermediate_size", width, f"the config must give it for dense layers {sorted(dense)}")
    plain = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=width))
    return decoder_of(hf, tuple(plain if i in dense else sparse for i in layers))


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    feed_forwards = [block.feed_forward for block in spec.layers()]
    dense = {i: mlp.ffn_hidden for i, mlp in enumerate(feed_forwards) if isinstance(mlp, Mlp)}
    experts = first_feed_forward(spec, Moe)
    window = first_attention(spec).window
    return {
        **decoder_config(spec),
        **router_losses(experts),
        **({"intermediate_size": next(iter(dense.values()))} if dense else {}),
        "attention_bias": first_attention(spec).qkv_bias,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "num_experts": experts.experts,
        "num_experts_per_tok": experts.topk,
        "moe_intermediate_size": experts.ffn_hidden,
        "norm_topk_prob": experts.normalize_topk,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(dense),
    }


_EXPERT = "mlp.experts.{expert}."

QWEN3_MOE = Family(
    name="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Moe, Mlp),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=moe_weights(
        router="mlp.gate.weight",
        gate=_EXPERT + "gate_proj.weight",
        up=_EXPERT + "up_proj.weight",
        down=_EXPERT + "down_proj.weight",
    ),
)
