"""An attention's parameters and its layer's norms, from the names of transformers."""

from typing import Any

import torch

from tests.parity.ours.names import below
from tests.parity.ours.recurrent import delta_net

LATENTS = (
    ("linear_q_proj", "q_proj"),
    ("linear_q_down_proj", "q_a_proj"),
    ("q_layernorm", "q_a_layernorm"),
    ("linear_q_up_proj", "q_b_proj"),
    ("linear_kv_down_proj", "kv_a_proj_with_mqa"),
    ("kv_layernorm", "kv_a_layernorm"),
    ("linear_kv_up_proj", "kv_b_proj"),
)
INDEXER = (
    ("linear_wq_b.weight", "wq_b.weight"),
    ("linear_wk.weight", "wk.weight"),
    ("k_norm.weight", "k_norm.weight"),
    ("k_norm.bias", "k_norm.bias"),
    ("linear_weights_proj.weight", "weights_proj.weight"),
)


def attention(theirs: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    groups = config.num_key_value_heads
    ours = {
        "input_layernorm.weight": theirs["input_layernorm.weight"],
        "pre_mlp_layernorm.weight": theirs["post_attention_layernorm.weight"],
        "self_attention.linear_proj.weight": theirs.get("self_attn.o_proj.weight"),
    }
    for name, published in (("input_layernorm", "input_layernorm"), ("pre_mlp_layernorm", "post_attention_layernorm")):
        if f"{published}.bias" in theirs:
            ours[f"{name}.bias"] = theirs[f"{published}.bias"]
    if "pre_feedforward_layernorm.weight" in theirs:
        ours["pre_mlp_layernorm.weight"] = theirs["pre_feedforward_layernorm.weight"]
        ours["post_self_attn_layernorm.weight"] = theirs["post_attention_layernorm.weight"]
        ours["post_mlp_layernorm.weight"] = theirs["post_feedforward_layernorm.weight"]
    if "post_self_attn_layernorm.weight" in theirs:
        ours["post_self_attn_layernorm.weight"] = theirs["post_self_attn_layernorm.weight"]
        ours["post_mlp_layernorm.weight"] = theirs["post_mlp_layernorm.weight"]
    if "self_attn.kv_a_proj_with_mqa.weight" in theirs:
        names = {f"self_attention.{name}.weight": f"self_attn.{published}.weight" for name, published in LATENTS}
        indexer = "self_attention.core_attention.indexer."
        names |= {indexer + name: f"self_attn.indexer.{published}" for name, published in INDEXER}
        return ours | {name: theirs[published] for name, published in names.items() if published in theirs}
    if "linear_attn.in_proj_qkvz.weight" in theirs:
        del ours["self_attention.linear_proj.weight"]
        return ours | delta_net(below(theirs, "linear_attn."), config)
    if "self_attn.qkv_proj.weight" in theirs:
        head = config.hidden_size // config.num_attention_heads
        sizes = [heads * head for heads in (config.num_attention_heads, groups, groups)]
        parts = theirs["self_attn.qkv_proj.weight"].split(sizes)
        theirs |= {f"self_attn.{x}_proj.weight": part for x, part in zip("qkv", parts, strict=True)}
    for kind in ("weight", "bias"):
        if f"self_attn.q_proj.{kind}" in theirs:
            parts = [theirs[f"self_attn.{x}_proj.{kind}"] for x in "qkv"]
            by_group = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
            if config.model_type == "qwen3_next":  # gates follow the queries of their group
                queries_gates = by_group[0].unflatten(1, (-1, 2, config.head_dim))
                by_group[0] = queries_gates.transpose(1, 2).flatten(1, 3)
            ours[f"self_attention.linear_qkv.{kind}"] = torch.cat(by_group, 1).flatten(0, 1)
    if "self_attn.o_proj.bias" in theirs:
        ours["self_attention.linear_proj.bias"] = theirs["self_attn.o_proj.bias"]
    if "self_attn.g_proj.weight" in theirs:
        ours["self_attention.linear_gate.weight"] = theirs["self_attn.g_proj.weight"]
    if "self_attn.sinks" in theirs:
        ours["self_attention.core_attention.softmax_offset"] = theirs["self_attn.sinks"]
    for x, whole in (("q", "query"), ("k", "key")):
        for name in (f"self_attn.{x}_norm.weight", f"self_attn.{whole}_layernorm.weight"):
            if name in theirs:
                ours[f"self_attention.{x}_layernorm.weight"] = theirs[name]
    return ours
