"""What DeepSeek-V2, V3 and their kin share: latent attention, experts after the first dense layers, their names."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Block, LatentAttention, Mixer, Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    DECODER_WEIGHTS,
    DEEPSEEK_EXPERTS,
    decoder_of,
    first_feed_forward,
    first_mixer,
    shell_config,
)
from ridgeline.models.family import Field, Values, require
from ridgeline.models.hf_rope import require_frequencies, rope_config
from ridgeline.models.hf_template import Template, direct

LATENT_FIELDS = (
    *DECODER_FIELDS,
    Field("num_key_value_heads", int | None, None),
    Field("q_lora_rank", int | None, null_is_value=True),
    Field("kv_lora_rank", int),
    Field("qk_nope_head_dim", int),
    Field("qk_rope_head_dim", int),
    Field("v_head_dim", int),
    Field("attention_bias", bool, False, only=(False,)),
    Field("mlp_bias", bool, False, only=(False,)),
    Field("head_dim", int | None, None),  # transformers' name for the rotary part
)

DEEPSEEK_FIELDS = (
    Field("intermediate_size", int),
    Field("moe_intermediate_size", int),
    Field("first_k_dense_replace", int, minimum=0),
    Field("moe_layer_freq", int, 1, only=(1,)),
    Field("n_routed_experts", int),
    Field("n_shared_experts", int | None, null_is_value=True),
    Field("num_experts_per_tok", int),
    Field("routed_scaling_factor", float, minimum=0),
    Field("n_group", int | None, null_is_value=True),
    Field("topk_group", int | None, null_is_value=True),
    Field("aux_loss_alpha", float, 0.0, minimum=0),
    Field("seq_aux", bool, True),
)

LATENT_NORM_EPS = 1e-6
"""Of every class of transformers with latents, whatever its config gives the other norms."""

_ATTENTION = "model.layers.{layer}.self_attn."
LATENT_WEIGHTS: Mapping[str, Template] = MappingProxyType(
    {
        **DECODER_WEIGHTS,
        **DEEPSEEK_EXPERTS,
        "self_attention.linear_q_proj.weight": direct(_ATTENTION + "q_proj.weight"),
        "self_attention.linear_q_down_proj.weight": direct(_ATTENTION + "q_a_proj.weight"),
        "self_attention.q_layernorm.weight": direct(_ATTENTION + "q_a_layernorm.weight"),
        "self_attention.linear_q_up_proj.weight": direct(_ATTENTION + "q_b_proj.weight"),
        "self_attention.linear_kv_down_proj.weight": direct(_ATTENTION + "kv_a_proj_with_mqa.weight"),
        "self_attention.kv_layernorm.weight": direct(_ATTENTION + "kv_a_layernorm.weight"),
        "self_attention.linear_kv_up_proj.weight": direct(_ATTENTION + "kv_b_proj.weight"),
    }
)


def latent_of(hf: Values, rope: Rope, **traits: Any) -> LatentAttention:
    """The attention of a layer."""
    heads, kv_heads = hf["num_attention_heads"], hf["num_key_value_heads"]
    rule = f"must be num_attention_heads={heads}, since every head has a key of its own"
    require(kv_heads in (None, heads), "num_key_value_heads", kv_heads, rule)
    rule = f"must be qk_rope_head_dim={hf['qk_rope_head_dim']} or left out"
    require(hf["head_dim"] in (None, hf["qk_rope_head_dim"]), "head_dim", hf["head_dim"], rule)
    require_frequencies(rope, hf["qk_rope_head_dim"])
    return LatentAttention(
        heads=heads,
        q_lora_rank=hf["q_lora_rank"],
        kv_lora_rank=hf["kv_lora_rank"],
        nope_head_dim=hf["qk_nope_head_dim"],
        rope_head_dim=hf["qk_rope_head_dim"],
        v_head_dim=hf["v_head_dim"],
        norm_eps=None if hf["rms_norm_eps"] == LATENT_NORM_EPS else LATENT_NORM_EPS,
        rope=rope,
        **traits,
    )


def deepseek_of(hf: Values, attention: Mixer, *, mtp: int = 0, **traits: Any) -> ModelSpec:
    """The model: dense layers first, then layers with experts, whose further ``traits`` are given."""
    shared = hf["n_shared_experts"]
    experts = Moe(
        experts=hf["n_routed_experts"],
        topk=hf["num_experts_per_tok"],
        ffn_hidden=hf["moe_intermediate_size"],
        topk_scale=hf["routed_scaling_factor"],
        groups=hf["n_group"] or 1,
        group_topk=hf["topk_group"] or 1,
        aux_loss=hf["aux_loss_alpha"],
        aux_per_sequence=bool(hf["aux_loss_alpha"]) and hf["seq_aux"],
        shared_ffn=shared * hf["moe_intermediate_size"] if shared else None,
        **traits,
    )
    dense, layers = hf["first_k_dense_replace"], hf["num_hidden_layers"]
    require(dense < layers, "first_k_dense_replace", dense, f"must be < num_hidden_layers={layers}")
    plain = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=hf["intermediate_size"]))
    sparse = Block(mixer=attention, feed_forward=experts)
    return decoder_of(hf, (plain,) * dense + (sparse,) * (layers - dense), mtp=mtp)


def latent_config(spec: ModelSpec) -> dict[str, Any]:
    """The fields that ``latent_of`` reads, and those around the layers."""
    attention = first_mixer(spec, LatentAttention)
    return {
        **shell_config(spec),
        **rope_config(attention.rope),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "q_lora_rank": attention.q_lora_rank,
        "kv_lora_rank": attention.kv_lora_rank,
        "qk_nope_head_dim": attention.nope_head_dim,
        "qk_rope_head_dim": attention.rope_head_dim,
        "v_head_dim": attention.v_head_dim,
        "attention_bias": False,
    }


def deepseek_config(spec: ModelSpec) -> dict[str, Any]:
    """The fields that ``deepseek_of`` reads."""
    dense = [part for block in spec.layers() if isinstance(part := block.feed_forward, Mlp)]
    experts = first_feed_forward(spec, Moe)
    return {
        "intermediate_size": dense[0].ffn_hidden if dense else experts.ffn_hidden,
        "moe_intermediate_size": experts.ffn_hidden,
        "first_k_dense_replace": len(dense),
        "moe_layer_freq": 1,
        "n_routed_experts": experts.experts,
        "n_shared_experts": (experts.shared_ffn or 0) // experts.ffn_hidden or None,
        "num_experts_per_tok": experts.topk,
        "routed_scaling_factor": experts.topk_scale,
        "n_group": experts.groups,
        "topk_group": experts.group_topk,
        "norm_topk_prob": experts.normalize_topk,
        **({"aux_loss_alpha": experts.aux_loss, "seq_aux": experts.aux_per_sequence} if experts.aux_loss else {}),
    }
