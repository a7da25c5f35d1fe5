"""Qwen3-Next and Qwen3-Coder-Next: three gated delta nets to each gated attention, a shared expert behind a gate."""

from types import MappingProxyType
from typing import Any

from ridgeline.core.errors import Problem, SpecError
from ridgeline.core.model import Attention, Block, GatedDeltaNet, Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    SPARSE_WEIGHTS,
    attention_config,
    attention_of,
    decoder_of,
    first_feed_forward,
    mtp_config,
    mtp_of,
    shell_config,
)
from ridgeline.models.families.qwen2_moe import SHARED_WEIGHTS
from ridgeline.models.families.sparse_steps import SPARSE_FIELDS, feed_forwards_config, feed_forwards_of
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import Template, delta_inputs, direct, gated_qkv

FIELDS = (
    *DECODER_FIELDS,
    *(field for field in SPARSE_FIELDS if field.name != "norm_topk_prob"),
    Field("norm_topk_prob", bool, True),
    Field("num_key_value_heads", int),
    Field("head_dim", int),
    Field("attention_bias", bool, False),
    Field("use_sliding_window", bool, False, only=(False,)),
    Field("shared_expert_intermediate_size", int),
    Field("full_attention_interval", int, 4),
    Field("layer_types", list[str] | None, None),
    Field("linear_conv_kernel_dim", int),
    Field("linear_key_head_dim", int),
    Field("linear_value_head_dim", int),
    Field("linear_num_key_heads", int),
    Field("linear_num_value_heads", int),
    Field("num_nextn_predict_layers", int, 0, minimum=0),  # the first files leave out that they hold one
)
_PUBLISHED, _ATTENTION = "model.layers.{layer}.", "self_attention."
_LINEAR = _PUBLISHED + "linear_attn."
KINDS = ("linear_attention", "full_attention")
ABSENT = (
    GatedDeltaNet(key_heads=1, value_heads=1, key_head_dim=1, value_head_dim=1),
    Attention(heads=1, kv_heads=1, head_dim=8, rope=Rope(share=0.25)),
)
"""Whose fields a file gives of a kind of layer that the model has none of, as one of few layers may."""


def _layer_types(hf: Values) -> list[str]:
    layers, interval = hf["num_hidden_layers"], hf["full_attention_interval"]
    kinds = hf["layer_types"]
    kinds = [KINDS[(i + 1) % interval == 0] for i in range(layers)] if kinds is None else kinds
    require(len(kinds) == layers, "layer_types", kinds, f"must name num_hidden_layers={layers} layers")
    require(all(kind in KINDS for kind in kinds), "layer_types", kinds, f"must hold only {' and '.join(KINDS)}")
    return kinds


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    bias = hf["attention_bias"]
    mixers = {
        "full_attention": attention_of(hf, rope, qk_norm=True, gate="element", qkv_bias=bias, out_bias=bias),
        "linear_attention": GatedDeltaNet(
            key_heads=hf["linear_num_key_heads"],
            value_heads=hf["linear_num_value_heads"],
            key_head_dim=hf["linear_key_head_dim"],
            value_head_dim=hf["linear_value_head_dim"],
            conv_kernel=hf["linear_conv_kernel_dim"],
        ),
    }
    parts = feed_forwards_of(hf, shared_ffn=hf["shared_expert_intermediate_size"], shared_gate=True)
    blocks = (Block(mixer=mixers[kind], feed_forward=part) for kind, part in zip(_layer_types(hf), parts, strict=True))
    return decoder_of(hf, tuple(blocks), norm="zero_centred_rms", mtp=mtp_of(hf))


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    mixers = [block.mixer for block in spec.layers()]
    kinds = [KINDS[isinstance(mixer, Attention)] for mixer in mixers]
    attention = next(mixer for mixer in (*mixers, *ABSENT) if isinstance(mixer, Attention))
    linear = next(mixer for mixer in (*mixers, *ABSENT) if isinstance(mixer, GatedDeltaNet))
    if spec.norm != "zero_centred_rms":
        raise SpecError(Problem("norm", spec.norm, "cannot be written as family='qwen3_next'", "use zero_centred_rms"))
    return {
        **shell_config(spec),
        **attention_config(attention),
        **feed_forwards_config(spec),
        "attention_bias": attention.qkv_bias,
        "shared_expert_intermediate_size": first_feed_forward(spec, Moe).shared_ffn,
        "layer_types": kinds,
        "use_sliding_window": False,
        "linear_conv_kernel_dim": linear.conv_kernel,
        "linear_key_head_dim": linear.key_head_dim,
        "linear_value_head_dim": linear.value_head_dim,
        "linear_num_key_heads": linear.key_heads,
        "linear_num_value_heads": linear.value_heads,
        **mtp_config(spec),
    }


WEIGHTS = MappingProxyType(
    {
        **SPARSE_WEIGHTS,
        **SHARED_WEIGHTS,
        _ATTENTION + "linear_qkv.weight": gated_qkv(*(_PUBLISHED + f"self_attn.{x}_proj.weight" for x in "qkv")),
        _ATTENTION + "linear_qkv.bias": gated_qkv(*(_PUBLISHED + f"self_attn.{x}_proj.bias" for x in "qkv")),
        _ATTENTION + "in_proj.weight": delta_inputs(*(f"{_LINEAR}in_proj_{x}.weight" for x in ("qkvz", "ba"))),
        _ATTENTION + "conv1d.weight": direct(_LINEAR + "conv1d.weight"),
        _ATTENTION + "dt_bias": direct(_LINEAR + "dt_bias"),
        _ATTENTION + "A_log": direct(_LINEAR + "A_log"),
        _ATTENTION + "out_norm.weight": direct(_LINEAR + "norm.weight"),
        _ATTENTION + "out_proj.weight": direct(_LINEAR + "out_proj.weight"),
    }
)
MTP_WEIGHTS = MappingProxyType(
    {
        **{
            name: Template(
                form.transform, tuple(each.replace(_PUBLISHED, "mtp.layers.{layer}.") for each in form.names)
            )
            for name, form in WEIGHTS.items()
        },
        "mtp.enorm.weight": direct("mtp.pre_fc_norm_embedding.weight"),
        "mtp.hnorm.weight": direct("mtp.pre_fc_norm_hidden.weight"),
        "mtp.eh_proj.weight": direct("mtp.fc.weight"),
        "mtp.final_layernorm.weight": direct("mtp.norm.weight"),
    }
)

QWEN3_NEXT = Family(
    name="qwen3_next",
    architectures=("Qwen3NextForCausalLM",),
    fields=FIELDS,
    rotary_share=0.25,
    mixers=(Attention, GatedDeltaNet),
    feed_forwards=(Moe, Mlp),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=WEIGHTS,
    mtp_weights=MTP_WEIGHTS,
)
