"""LongCat-Flash: two layers of latent attention and an MLP to each set of experts, which stand beside them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from ridgeline.core.errors import Problem, SpecError
from ridgeline.core.model import Block, LatentAttention, Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    DECODER_WEIGHTS,
    decoder_of,
    first_feed_forward,
    first_mixer,
    mtp_config,
    mtp_of,
)
from ridgeline.models.families.latent import LATENT_FIELDS, LATENT_WEIGHTS, latent_config, latent_of
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import Template, direct, gate_up

HEAD_DIM = 64
"""What transformers turns where a file does not say."""

FIELDS = (
    *(field for field in LATENT_FIELDS if field.name != "num_hidden_layers"),
    Field("num_layers", int, alias="num_hidden_layers"),
    Field("ffn_hidden_size", int),
    Field("expert_ffn_hidden_size", int),
    Field("n_routed_experts", int),
    Field("zero_expert_num", int, minimum=0),
    Field("moe_topk", int),
    Field("routed_scaling_factor", float, minimum=0),
    Field("qk_head_dim", int | None, None),
    Field("head_dim", int | None, None),
    Field("num_nextn_predict_layers", int, 0, minimum=0),  # the first files leave out that they hold one
    *(Field(name, bool, True, only=(True,)) for name in ("mla_scale_q_lora", "mla_scale_kv_lora")),
    Field("attention_method", str, "MLA", only=("MLA",)),
    Field("zero_expert_type", str, "identity", only=("identity",)),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    both = hf["qk_nope_head_dim"] + hf["qk_rope_head_dim"]
    rule = f"must be qk_nope_head_dim+qk_rope_head_dim={both}"
    require(hf["qk_head_dim"] in (None, both), "qk_head_dim", hf["qk_head_dim"], rule)
    turning = hf["qk_rope_head_dim"]
    require(hf["head_dim"] in (None, turning), "head_dim", hf["head_dim"], f"must be qk_rope_head_dim={turning}")
    experts = Moe(
        experts=hf["n_routed_experts"],
        zero_experts=hf["zero_expert_num"],
        topk=hf["moe_topk"],
        ffn_hidden=hf["expert_ffn_hidden_size"],
        normalize_topk=False,
        topk_scale=hf["routed_scaling_factor"],
        expert_bias=True,
    )
    second = Block(mixer=latent_of(hf, rope, latent_scale=True), feed_forward=Mlp(ffn_hidden=hf["ffn_hidden_size"]))
    first = attrs.evolve(second, shortcut=experts)
    return decoder_of(hf, (first, second) * hf["num_layers"], mtp=mtp_of(hf))


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    experts = next(iter(spec.moes), None)
    if experts is None:
        raise SpecError(Problem("family", spec.family, "needs experts beside a layer"))
    turning = first_mixer(spec, LatentAttention).rope_head_dim
    config = {name: value for name, value in latent_config(spec).items() if name != "num_hidden_layers"}
    return {
        **config,
        **({"head_dim": turning} if turning != HEAD_DIM else {}),
        "num_layers": spec.num_layers // 2,
        "ffn_hidden_size": first_feed_forward(spec, Mlp).ffn_hidden,
        "expert_ffn_hidden_size": experts.ffn_hidden,
        "n_routed_experts": experts.experts,
        "zero_expert_num": experts.zero_experts,
        "moe_topk": experts.topk,
        "routed_scaling_factor": experts.topk_scale,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        **mtp_config(spec),
    }


_PAIR = "model.layers.{pair}."
_MLP, _EXPERT = _PAIR + "mlps.{half}.", _PAIR + "mlp.experts.{expert}."
WEIGHTS: Mapping[str, Template] = MappingProxyType(
    {
        **{name: DECODER_WEIGHTS[name] for name in DECODER_WEIGHTS if name.startswith(("emb", "dec", "out"))},
        **{
            name: direct(template.names[0].replace("{layer}.self_attn.", "{pair}.self_attn.{half}."))
            for name, template in LATENT_WEIGHTS.items()
            if name.startswith("self_attention.") and template.transform == "direct"
        },
        "input_layernorm.weight": direct(_PAIR + "input_layernorm.{half}.weight"),
        "pre_mlp_layernorm.weight": direct(_PAIR + "post_attention_layernorm.{half}.weight"),
        "mlp.linear_fc1.weight": gate_up(_MLP + "gate_proj.weight", _MLP + "up_proj.weight"),
        "mlp.linear_fc2.weight": direct(_MLP + "down_proj.weight"),
        "shortcut.router.weight": direct(_PAIR + "mlp.router.classifier.weight"),
        "shortcut.router.expert_bias": direct(_PAIR + "mlp.router.e_score_correction_bias"),
        "shortcut.experts.local_experts.{expert}.linear_fc1.weight": gate_up(
            _EXPERT + "gate_proj.weight", _EXPERT + "up_proj.weight"
        ),
        "shortcut.experts.local_experts.{expert}.linear_fc2.weight": direct(_EXPERT + "down_proj.weight"),
    }
)

_AHEAD = "model.mtp.layers.{layer}."
MTP_WEIGHTS: Mapping[str, Template] = MappingProxyType(
    {
        "mtp.enorm.weight": direct(_AHEAD + "enorm.m.weight"),
        "mtp.hnorm.weight": direct(_AHEAD + "hnorm.m.weight"),
        "mtp.eh_proj.weight": direct(_AHEAD + "eh_proj.weight"),
        "mtp.final_layernorm.weight": direct("model.mtp.norm.weight"),
        **{
            name: direct(template.names[0].replace("model.layers.{layer}.", _AHEAD))
            for name, template in LATENT_WEIGHTS.items()
            if name.startswith("self_attention.") and template.transform == "direct"
        },
        "input_layernorm.weight": direct(_AHEAD + "input_layernorm.weight"),
        "pre_mlp_layernorm.weight": direct(_AHEAD + "post_attention_layernorm.weight"),
        "mlp.linear_fc1.weight": gate_up(
            *(_AHEAD + f"transformer_layer.mlp.{name}_proj.weight" for name in ("gate", "up"))
        ),
        "mlp.linear_fc2.weight": direct(_AHEAD + "transformer_layer.mlp.down_proj.weight"),
    }
)

LONGCAT_FLASH = Family(
    name="longcat_flash",
    architectures=("LongcatFlashForCausalLM",),
    fields=FIELDS,
    rope_base=10000000.0,
    interleaved=True,
    mixers=(LatentAttention,),
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=WEIGHTS,
    mtp_weights=MTP_WEIGHTS,
)
