"""Hunyuan-Large and its 7B: layers that share keys and values in pairs, one expert a token beside a shared one."""

from types import MappingProxyType
from typing import Any

import attrs

from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import decoder_of, first_attention
from ridgeline.models.families.hunyuan import (
    HUNYUAN_FIELDS,
    HUNYUAN_WEIGHTS,
    hunyuan_attention,
    hunyuan_config,
    of_all_layers,
)
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import direct

FIELDS = (
    *HUNYUAN_FIELDS,
    Field("use_qk_norm", bool, False),
    Field("use_cla", bool, False),
    Field("cla_share_factor", int, 1),
    Field("num_experts", int | list[int], 1),
    Field("moe_topk", int | list[int], 1),
    Field("num_shared_expert", int | list[int], 1, minimum=0),
    Field("moe_intermediate_size", int | list[int] | None, None),
    Field("moe_layer_num_skipped", int, 0, minimum=0, only=(0,)),
    Field("moe_drop_tokens", bool, False, only=(False,)),
    Field("use_mixed_mlp_moe", bool, False),
    Field("kv_lora_rank", int | None, None, only=(None,)),
)
_LAYER = "model.layers.{layer}.self_attn."
WEIGHTS = MappingProxyType(
    {
        **HUNYUAN_WEIGHTS,
        "self_attention.linear_q.weight": direct(_LAYER + "q_proj.weight"),
        "self_attention.linear_q.bias": direct(_LAYER + "q_proj.bias"),
    }
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    normed = hf["use_qk_norm"]
    own = hunyuan_attention(hf, rope, qk_norm=normed, qk_norm_after_rope=normed)
    sharers = hf["cla_share_factor"] if hf["use_cla"] else 1
    pairs = (own, *(attrs.evolve(own, shares_kv=True),) * (sharers - 1))
    feed_forward = _feed_forward_of(hf)
    blocks = [Block(mixer=mixer, feed_forward=feed_forward) for mixer in pairs]
    return decoder_of(hf, tuple(blocks[layer % sharers] for layer in range(hf["num_hidden_layers"])))


def _feed_forward_of(hf: Values) -> Mlp | Moe:
    """With one expert in all, an MLP; of one expert a token the weight is its share of all scores."""
    experts, topk = of_all_layers(hf, "num_experts"), of_all_layers(hf, "moe_topk")
    width, shared = hf["intermediate_size"], of_all_layers(hf, "num_shared_expert")
    if experts == 1:
        return Mlp(ffn_hidden=width)
    expert = of_all_layers(hf, "moe_intermediate_size")
    require(expert in (None, width), "moe_intermediate_size", expert, f"must be intermediate_size={width}")
    shared_ffn = shared * width if hf["use_mixed_mlp_moe"] and shared else None
    return Moe(experts=experts, topk=topk, ffn_hidden=width, normalize_topk=topk > 1, shared_ffn=shared_ffn)


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    mixers = [block.mixer for block in spec.layers() if isinstance(block.mixer, Attention)]
    owners = [layer for layer, mixer in enumerate(mixers) if not mixer.shares_kv]
    sharers = [*owners, len(mixers)][1]
    part = spec.layers()[0].feed_forward
    config = {
        **hunyuan_config(spec),
        "use_cla": sharers > 1,
        "cla_share_factor": sharers if sharers > 1 else 1,
        "intermediate_size": part.ffn_hidden if part else None,
    }
    if "head_dim" in config and first_attention(spec).head_dim * first_attention(spec).heads == spec.hidden:
        del config["head_dim"]
    if isinstance(part, Moe):
        shared = (part.shared_ffn or 0) // part.ffn_hidden
        experts = {"num_experts": part.experts, "moe_topk": part.topk, "moe_drop_tokens": False}
        config |= {**experts, "use_mixed_mlp_moe": shared > 0, "num_shared_expert": shared or 1}
    return config


HUNYUAN = Family(
    name="hunyuan",
    architectures=("HunYuanForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Moe, Mlp),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=WEIGHTS,
)
