"""Nemotron-H and Nemotron 3 Nano: layers of one part, a state space, attention without positions or a feed-forward."""

from collections.abc import Mapping
from itertools import groupby
from types import MappingProxyType, NoneType
from typing import Any

from ridgeline.core.model import Activation, Attention, Block, Mamba2, Mlp, ModelSpec, Moe, Repeat, Rope
from ridgeline.models.families.mamba2 import STEP_LIMIT, mamba_weights
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import Template, direct, grouped_qkv

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "M": "linear_attention",
        "*": "full_attention",
        "-": "mlp",
        "E": "moe",
        "mamba": "linear_attention",
        "attention": "full_attention",
    }
)
"""What older files call a layer, letter by letter or word by word."""

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType({"relu2": "squared_relu", "gelu": "gelu"})
"""Ours for each activation of an MLP."""

FIELDS = (
    Field("vocab_size", int),
    Field("hidden_size", int),
    Field("layers_block_type", list[str] | None, None),
    Field("hybrid_override_pattern", str | None, None),
    Field("num_hidden_layers", int | None, None),
    Field("max_position_embeddings", int, 4096),
    Field("layer_norm_epsilon", float, 1e-5, minimum=0),
    Field("initializer_range", float, 0.02, minimum=0),
    Field("tie_word_embeddings", bool, False, only=(False,)),
    Field("hidden_dropout", float, 0.0, only=(0.0,)),
    Field("quantization_config", dict | None, None, only=(None,)),
    Field("num_attention_heads", int),
    Field("num_key_value_heads", int),
    Field("head_dim", int, 128, alias="attention_head_dim"),
    Field("attention_bias", bool, False, only=(False,)),
    Field("attention_dropout", float, 0.0, only=(0.0,)),
    Field("sliding_window", int | None, None, only=(None,)),
    Field("intermediate_size", int),
    Field("mlp_hidden_act", str, "relu2", only=tuple(ACTIVATIONS)),
    Field("mlp_bias", bool, False),
    Field("mamba_num_heads", int),
    Field("mamba_head_dim", int),
    Field("mamba_hidden_act", str, "silu", only=("silu",)),
    Field("ssm_state_size", int),
    Field("n_groups", int),
    Field("conv_kernel", int, 4),
    Field("use_conv_bias", bool, True),
    Field("use_bias", bool, False),
    Field("mamba_proj_bias", bool, False, only=(False,)),
    Field("chunk_size", int, 128),
    Field("time_step_min", float, 0.001, minimum=0),
    STEP_LIMIT,
    Field("n_routed_experts", int, 8),
    Field("num_experts_per_tok", int, 2),
    Field("moe_intermediate_size", int, 7688),
    Field("moe_shared_expert_intermediate_size", int, 7688),
    Field("moe_latent_size", int | None, None, only=(None,)),
    Field("n_group", int, 1),
    Field("topk_group", int, 1),
    Field("norm_topk_prob", bool, True),
    Field("routed_scaling_factor", float, 1.0, minimum=0),
    Field("num_nextn_predict_layers", int, 0, minimum=0, only=(0,)),
    # Of first values, of speed, or of nothing: what a forward computes does not depend on them.
    *(Field(f"time_step_{name}", float | None, None, minimum=0) for name in ("max", "floor")),
    *(Field(name, int | None, None, minimum=0) for name in ("expand", "n_shared_experts", "num_logits_to_keep")),
    *(Field(name, bool | None, None) for name in ("residual_in_fp32", "rescale_prenorm_residual")),
    *(Field(name, bool | None, None) for name in ("use_mamba_kernels", "moe_shared_expert_overlap")),
    Field("mamba_ssm_cache_dtype", str | None, None),
    Field("mtp_layers_block_type", list | None, None),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    kinds = _kinds(hf)
    if "moe" in kinds:
        require(not hf["mlp_bias"], "mlp_bias", True, "is not modelled beside experts")
        require(hf["mlp_hidden_act"] == "relu2", "mlp_hidden_act", hf["mlp_hidden_act"], "is not modelled of experts")
    blocks = _blocks(hf)
    return ModelSpec(
        vocab_size=hf["vocab_size"],
        hidden=hf["hidden_size"],
        max_position=hf["max_position_embeddings"],
        blocks=tuple(Repeat(block=blocks[kind], count=len(tuple(run))) for kind, run in groupby(kinds)),
        norm_eps=hf["layer_norm_epsilon"],
        init_std=hf["initializer_range"],
    )


def _kinds(hf: Values) -> list[str]:
    """The kind of each layer, in the words of transformers 5."""
    words, pattern, layers = hf["layers_block_type"], hf["hybrid_override_pattern"], hf["num_hidden_layers"]
    require(words or pattern, "layers_block_type", words, "the config must give it, or a hybrid_override_pattern")
    kinds = [KINDS.get(word, word) for word in words or pattern]
    unknown = [kind for kind in kinds if kind not in tuple(KINDS.values())]
    require(not unknown, "layers_block_type", unknown, f"must hold only {', '.join(sorted(set(KINDS.values())))}")
    rule = f"contradicts the {len(kinds)} layers that are named"
    require(layers in (None, len(kinds)), "num_hidden_layers", layers, rule)
    if words and pattern:
        same = [KINDS.get(letter, letter) for letter in pattern] == kinds
        require(same, "hybrid_override_pattern", pattern, "contradicts layers_block_type")
    return kinds


def _blocks(hf: Values) -> Mapping[str, Block]:
    """A layer of each kind."""
    attention = Attention(
        heads=hf["num_attention_heads"],
        kv_heads=hf["num_key_value_heads"],
        head_dim=hf["head_dim"],
        positions="none",
    )
    mamba = Mamba2(
        heads=hf["mamba_num_heads"],
        head_dim=hf["mamba_head_dim"],
        state=hf["ssm_state_size"],
        groups=hf["n_groups"],
        conv_kernel=hf["conv_kernel"],
        conv_bias=hf["use_conv_bias"],
        bias=hf["use_bias"],
        chunk=hf["chunk_size"],
        step_min=hf["time_step_min"],
    )
    experts = Moe(
        experts=hf["n_routed_experts"],
        topk=hf["num_experts_per_tok"],
        ffn_hidden=hf["moe_intermediate_size"],
        shared_ffn=hf["moe_shared_expert_intermediate_size"],
        activation="squared_relu",
        score="sigmoid",
        expert_bias=True,
        normalize_topk=hf["norm_topk_prob"],
        topk_scale=hf["routed_scaling_factor"],
        groups=hf["n_group"],
        group_topk=hf["topk_group"],
    )
    mlp = Mlp(ffn_hidden=hf["intermediate_size"], activation=ACTIVATIONS[hf["mlp_hidden_act"]], bias=hf["mlp_bias"])
    return {
        "linear_attention": Block(mixer=mamba),
        "full_attention": Block(mixer=attention),
        "mlp": Block(feed_forward=mlp),
        "moe": Block(feed_forward=experts),
    }


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    config: dict[str, Any] = {}
    kinds = []
    for block in spec.layers():
        kind, fields = _fields_of(block)
        kinds.append(kind)
        config |= fields
    return {
        **ABSENT,
        **config,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden,
        "layers_block_type": kinds,
        "max_position_embeddings": spec.max_position,
        "layer_norm_epsilon": spec.norm_eps,
        "initializer_range": spec.init_std,
        "tie_word_embeddings": False,
    }


ABSENT: Mapping[str, Any] = MappingProxyType(
    {
        **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "intermediate_size"), 1),
        **dict.fromkeys(("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups"), 1),
    }
)
"""Of kinds of layers that a model has none of, the fields that a file must give all the same."""


def _fields_of(block: Block) -> tuple[str, dict[str, Any]]:
    """What a layer is called, and the fields of its part."""
    match block.mixer or block.feed_forward:
        case Attention() as mixer:
            return "full_attention", {
                "num_attention_heads": mixer.heads,
                "num_key_value_heads": mixer.kv_heads,
                "head_dim": mixer.head_dim,
            }
        case Mamba2() as mixer:
            return "linear_attention", {
                "mamba_num_heads": mixer.heads,
                "mamba_head_dim": mixer.head_dim,
                "ssm_state_size": mixer.state,
                "n_groups": mixer.groups,
                "conv_kernel": mixer.conv_kernel,
                "use_conv_bias": mixer.conv_bias,
                "use_bias": mixer.bias,
                "chunk_size": mixer.chunk,
                "time_step_min": mixer.step_min,
            }
        case Mlp() as mlp:
            act = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == mlp.activation), "relu2")
            return "mlp", {"intermediate_size": mlp.ffn_hidden, "mlp_hidden_act": act, "mlp_bias": mlp.bias}
        case Moe() as moe:
            return "moe", {
                "n_routed_experts": moe.experts,
                "num_experts_per_tok": moe.topk,
                "moe_intermediate_size": moe.ffn_hidden,
                "moe_shared_expert_intermediate_size": moe.shared_ffn,
                "norm_topk_prob": moe.normalize_topk,
                "routed_scaling_factor": moe.topk_scale,
                "n_group": moe.groups,
                "topk_group": moe.group_topk,
            }
        case part:
            raise AssertionError(part)  # no family's kind of layer


_MIXER = "backbone.layers.{layer}.mixer."

NEMOTRON_H_WEIGHTS: Mapping[str, Template] = MappingProxyType(
    {
        **mamba_weights("backbone"),
        **dict.fromkeys(
            ("input_layernorm.weight", "pre_mlp_layernorm.weight"), direct("backbone.layers.{layer}.norm.weight")
        ),
        "self_attention.linear_qkv.weight": grouped_qkv(*(_MIXER + f"{x}_proj.weight" for x in "qkv")),
        "self_attention.linear_proj.weight": direct(_MIXER + "o_proj.weight"),
        **{
            f"{ours}{fc}.{kind}": direct(f"{_MIXER}{theirs}{part}_proj.{kind}")
            for ours, theirs in (
                ("mlp.", ""),
                ("mlp.experts.local_experts.{expert}.", "experts.{expert}."),
                ("mlp.shared_experts.", "shared_experts."),
            )
            for fc, part in (("linear_fc1", "up"), ("linear_fc2", "down"))
            for kind in ("weight", "bias")
        },
        "mlp.router.weight": direct(_MIXER + "gate.weight"),
        "mlp.router.expert_bias": direct(_MIXER + "gate.e_score_correction_bias"),
    }
)

NEMOTRON_H = Family(
    name="nemotron_h",
    architectures=("NemotronHForCausalLM",),
    fields=FIELDS,
    mixers=(Mamba2, Attention, NoneType),
    feed_forwards=(Mlp, Moe, NoneType),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=NEMOTRON_H_WEIGHTS,
)
