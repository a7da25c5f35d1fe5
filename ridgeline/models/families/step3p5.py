"""Step-3.5-Flash: heads and rotary positions by kind of layer, gates of heads, SwiGLU bounded in the last layers.

Source:
    huggingface/transformers 5.23, models/step3p7 (its text model, ``step3p5``). Of what it leaves out, prediction of
    further tokens: vllm-project/vllm 12c9ac28, model_executor/models/step3p5_mtp.py.
"""

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

from ridgeline.core.errors import SpecError
from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    DECODER_WEIGHTS,
    attention_of,
    decoder_of,
    first_feed_forward,
    shell_config,
)
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_rope import read_rope, rope_config
from ridgeline.models.hf_template import direct, gate_up, stacked_rows

ALWAYS = MappingProxyType(
    {
        **dict.fromkeys(("use_qk_norm", "use_head_wise_attn_gate", "use_moe", "use_moe_router_bias"), True),
        **dict.fromkeys(("need_fp32_gate", "norm_expert_weight", "zero_centered"), True),
        "sink": False,
        "att_impl_type": "GQA",
        "moe_router_activation": "sigmoid",
        "use_rope_layers": [],
    }
)
"""What files say and this family's class takes for granted."""

FIELDS = (
    *(field for field in DECODER_FIELDS if field.name != "rms_norm_eps"),
    Field("rms_norm_eps", float, 1e-5, minimum=0),
    Field("intermediate_size", int),
    Field("num_key_value_heads", int, alias="num_attention_groups"),
    Field("head_dim", int),
    Field("num_sliding_attention_heads", int | None, None),
    Field("attention_other_setting", dict | None, None),
    Field("per_layer_config", dict | None, None),
    Field("layer_types", list[str]),
    Field("mtp_layer_types", list[str] | None, None),
    Field("sliding_window", int | None, None),
    Field("rope_theta", float | list[float | int] | None, None, minimum=0),
    Field("partial_rotary_factors", list[float | int] | None, None),
    Field("rope_scaling", dict | None, None),
    Field("rope_parameters", dict | None, None),
    Field("yarn_only_types", list | None, None, only=(None, ["full_attention"])),
    Field("query_pre_attn_scalar", float | None, None),
    Field("moe_layers_enum", str | list[int] | None, None),
    Field("mlp_layer_types", list[str] | None, None),
    Field("mtp_mlp_layer_types", list[str] | None, None),
    Field("n_routed_experts", int, alias="moe_num_experts"),
    Field("num_local_experts", int | None, None),
    Field("num_experts_per_tok", int, alias="moe_top_k"),
    Field("moe_intermediate_size", int),
    Field("share_expert_dim", int, alias="share_expert_dims"),
    Field("moe_router_scaling_factor", float, 1.0, minimum=0),
    Field("swiglu_limits", list[float | int] | None, None),
    Field("swiglu_limits_shared", list[float | int] | None, None),
    Field("num_nextn_predict_layers", int, 0, minimum=0, alias="num_mtp_layers"),
    *(
        Field(name, bool, False, only=(False,))
        for name in ("attention_bias", "mlp_bias", "use_bidirectional_attention")
    ),
    Field("gating", bool, True, only=(True,)),
    *(Field(name, type(value), value, only=(value,)) for name, value in ALWAYS.items()),
)
KINDS = ("full_attention", "sliding_attention")
_LAYER, _EXPERT = "model.layers.{layer}.", "mlp.experts.local_experts.{expert}."
WEIGHTS = MappingProxyType(
    {
        **DECODER_WEIGHTS,
        "self_attention.linear_gate.weight": direct(_LAYER + "self_attn.g_proj.weight"),
        "mlp.router.weight": direct(_LAYER + "moe.gate.weight"),
        "mlp.router.expert_bias": direct(_LAYER + "moe.router_bias"),
        _EXPERT + "linear_fc1.weight": stacked_rows(*(_LAYER + f"moe.{name}_proj.weight" for name in ("gate", "up"))),
        _EXPERT + "linear_fc2.weight": stacked_rows(_LAYER + "moe.down_proj.weight"),
        "mlp.shared_experts.linear_fc1.weight": gate_up(
            *(_LAYER + f"share_expert.{name}_proj.weight" for name in ("gate", "up"))
        ),
        "mlp.shared_experts.linear_fc2.weight": direct(_LAYER + "share_expert.down_proj.weight"),
        **{f"mtp.{name}.weight": direct(f"{_LAYER}{name}.weight") for name in ("enorm", "hnorm", "eh_proj")},
        "mtp.final_layernorm.weight": direct(_LAYER + "transformer.shared_head.norm.weight"),
    }
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    layers, ahead = hf["num_hidden_layers"], hf["num_nextn_predict_layers"]
    experts, again = hf["n_routed_experts"], hf["num_local_experts"]
    require(again in (None, experts), "num_local_experts", again, f"contradicts n_routed_experts={experts}")
    kinds = _of_layers(hf, "layer_types", (*hf["layer_types"], *(hf["mtp_layer_types"] or ())), KINDS)
    parts = _of_layers(hf, "mlp_layer_types", _parts_of(hf), ("dense", "sparse"))
    mixers = {kind: _attention_of(hf, kind, kinds) for kind in dict.fromkeys(kinds)}
    limits, shared = (_limits_of(hf, name) for name in ("swiglu_limits", "swiglu_limits_shared"))
    blocks = tuple(
        Block(mixer=mixers[kind], feed_forward=_feed_forward_of(hf, part, limit=limit, shared_limit=beside))
        for kind, part, limit, beside in zip(kinds, parts, limits, shared, strict=True)
    )
    rule = "must be alike in all layers of multi-token prediction"
    require(len(set(blocks[layers:])) <= 1, "mtp_layer_types", kinds[layers:], rule)
    mtp = {"mtp": ahead, "mtp_block": blocks[-1] if ahead else None, "mtp_before_norm": True}
    return decoder_of(hf, blocks[:layers], norm="zero_centred_rms", **mtp)


def _of_layers(hf: Values, name: str, kinds: tuple[Any, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """The kind of each layer, those of multi-token prediction behind the model's."""
    count = hf["num_hidden_layers"] + hf["num_nextn_predict_layers"]
    rule = f"must name {count} layers, those of multi-token prediction among them"
    require(len(kinds) == count, name, list(kinds), rule)
    require(all(kind in known for kind in kinds), name, list(kinds), f"must hold only {' and '.join(known)}")
    return kinds


def _parts_of(hf: Values) -> tuple[Any, ...]:
    if hf["mlp_layer_types"] is not None:
        return (*hf["mlp_layer_types"], *(hf["mtp_mlp_layer_types"] or ()))
    listed = hf["moe_layers_enum"]
    rule = "must say which layers hold experts, since files are read in two ways without"
    require(listed is not None, "moe_layers_enum", None, rule)
    numbers = [number.strip() for number in listed.split(",")] if isinstance(listed, str) else [*map(str, listed)]
    require(all(map(str.isdecimal, numbers)), "moe_layers_enum", listed, "must hold numbers of layers, by commas")
    sparse = set(map(int, numbers))
    count = hf["num_hidden_layers"] + hf["num_nextn_predict_layers"]
    return tuple("sparse" if layer in sparse else "dense" for layer in range(count))


def _limits_of(hf: Values, name: str) -> Iterable[float | None]:
    """Of each layer, None where nothing is bounded."""
    layers, ahead, given = hf["num_hidden_layers"], hf["num_nextn_predict_layers"], hf[name] or []
    rule = f"must hold a number for each of num_hidden_layers={layers} layers"
    require(len(given) in (0, layers, layers + ahead), name, given, rule)
    return [float(limit) if limit else None for limit in given] + [None] * (layers + ahead - len(given))


def _attention_of(hf: Values, kind: str, kinds: tuple[str, ...]) -> Attention:
    heads, window, head_dim = hf["num_attention_heads"], None, hf["head_dim"]
    if kind == "sliding_attention":
        other, window = hf["attention_other_setting"] or {}, hf["sliding_window"]
        heads = hf["num_sliding_attention_heads"] or other.get("num_attention_heads", heads)
        for name, field in (("num_attention_groups", "num_key_value_heads"), ("head_dim", "head_dim")):
            given = other.get(name, hf[field])
            require(
                given == hf[field], f"attention_other_setting.{name}", given, f"must be {hf[field]} as in all layers"
            )
        sliding = [layer for layer in range(hf["num_hidden_layers"]) if kinds[layer] == kind]
        own = {str(layer): {"num_attention_heads": heads} for layer in sliding}
        given = {str(layer): values for layer, values in (hf["per_layer_config"] or own).items()}
        require(given == own, "per_layer_config", given, f"must give sliding layers num_attention_heads={heads} alone")
        require(window is not None, "sliding_window", None, "must be given where layers slide")
    scalar = hf["query_pre_attn_scalar"]
    require(scalar in (None, head_dim), "query_pre_attn_scalar", scalar, f"is not modelled but as head_dim={head_dim}")
    sizes = {**hf, "num_attention_heads": heads}
    return attention_of(sizes, _rope_of(hf, kind, kinds), window=window, qk_norm=True, gate="head")


def _rope_of(hf: Values, kind: str, kinds: tuple[str, ...]) -> Rope:
    """The rotary positions of one kind of layer: a table of its own or, as published, a number for each layer."""
    config = {"max_position_embeddings": hf["max_position_embeddings"]}
    if hf["rope_parameters"] is not None:
        table = hf["rope_parameters"].get(kind)
        require(isinstance(table, dict), f"rope_parameters.{kind}", table, "must be a table")
        config["rope_parameters"] = table
    else:
        for name, field in (("rope_theta", "rope_theta"), ("partial_rotary_factor", "partial_rotary_factors")):
            given = hf[field] if isinstance(hf[field], list) else [hf[field]] * len(kinds)
            rule = f"must hold a number for each of {len(kinds)} layers, the same for all of {kind}"
            values = {value for value, of in zip(given, kinds, strict=False) if of == kind}
            require(len(given) == len(kinds) and len(values) == 1, field, given, rule)
            config[name] = values.pop()
        config["rope_scaling"] = hf["rope_scaling"] if kind == "full_attention" else None
        said = hf["rope_scaling"] is None or hf["yarn_only_types"] is not None
        require(said, "yarn_only_types", None, "must say which layers rope_scaling is of")
    rope, problems = read_rope(config, base=10000.0, share=1.0)
    if rope is None:
        raise SpecError(problems)
    return rope


def _feed_forward_of(hf: Values, part: str, *, limit: float | None, shared_limit: float | None) -> Mlp | Moe:
    """Experts, or an MLP, which is bounded as shared experts are."""
    if part == "dense":
        activation = "swiglu" if shared_limit is None else "bounded_swiglu"
        return Mlp(ffn_hidden=hf["intermediate_size"], activation=activation, limit=shared_limit)
    return Moe(
        experts=hf["n_routed_experts"],
        topk=hf["num_experts_per_tok"],
        ffn_hidden=hf["moe_intermediate_size"],
        topk_scale=hf["moe_router_scaling_factor"],
        shared_ffn=hf["share_expert_dim"],
        score="sigmoid",
        expert_bias=True,
        activation="swiglu" if limit is None and shared_limit is None else "bounded_swiglu",
        limit=limit,
        shared_limit=shared_limit,
    )


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    blocks = [*spec.layers(), *[spec.block_ahead] * spec.mtp]
    mixers = [block.mixer for block in blocks if isinstance(block.mixer, Attention)]
    parts = [block.feed_forward for block in blocks if block.feed_forward is not None]
    experts = first_feed_forward(spec, Moe)
    full = next((mixer for mixer in mixers if mixer.window is None), mixers[0])
    sliding = next((mixer for mixer in mixers if mixer.window is not None), full)
    return {
        **shell_config(spec),
        **ALWAYS,
        "intermediate_size": next((part.ffn_hidden for part in parts if isinstance(part, Mlp)), 1),
        "num_attention_heads": full.heads,
        "num_attention_groups": full.kv_heads,
        "head_dim": full.head_dim,
        "attention_other_setting": {
            "attention_type": "sliding_attention",
            "num_attention_heads": sliding.heads,
            "num_attention_groups": sliding.kv_heads,
            "head_dim": sliding.head_dim,
        },
        "layer_types": [KINDS[mixer.window is not None] for mixer in mixers],
        "sliding_window": sliding.window,
        "rope_theta": [mixer.rope.base for mixer in mixers],
        "partial_rotary_factors": [mixer.rope.share for mixer in mixers],
        "rope_scaling": rope_config(full.rope)["rope_scaling"],
        "yarn_only_types": ["full_attention"],
        "moe_layers_enum": ",".join(str(layer) for layer, part in enumerate(parts) if isinstance(part, Moe)),
        "moe_num_experts": experts.experts,
        "moe_top_k": experts.topk,
        "moe_intermediate_size": experts.ffn_hidden,
        "share_expert_dim": experts.shared_ffn,
        "moe_router_scaling_factor": experts.topk_scale,
        "swiglu_limits": [part.limit or 0.0 if isinstance(part, Moe) else 0.0 for part in parts],
        "swiglu_limits_shared": [(part.shared_limit if isinstance(part, Moe) else part.limit) or 0.0 for part in parts],
        "num_nextn_predict_layers": spec.mtp,
    }


STEP3P5 = Family(
    name="step3p5",
    architectures=("Step3p5ForCausalLM",),
    fields=FIELDS,
    rope_by_layer=True,
    feed_forwards=(Moe, Mlp),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=WEIGHTS,
)
