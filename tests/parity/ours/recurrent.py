"""Parameters of layers that carry a state, from the names of transformers."""

from typing import Any

import torch

from tests.parity.ours.names import below


def mamba_names(tensors: dict[str, Any], config: Any) -> dict[str, torch.Tensor]:
    """A model of Mamba2 layers: nothing is laid out otherwise."""
    ends = {"embeddings": "embedding.word_embeddings", "norm_f": "decoder.final_layernorm"}
    ours = {f"{name}.weight": tensors[f"backbone.{published}.weight"] for published, name in ends.items()}
    if not config.tie_word_embeddings:
        ours["output_layer.weight"] = tensors["lm_head.weight"]
    layers = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone.layers.")}
    return ours | {name.replace("backbone", "decoder", 1): tensor for name, tensor in layers.items()}


def hybrid_names(tensors: dict[str, Any], config: Any) -> dict[str, torch.Tensor]:
    """A model of layers with one part each, which are all called ``mixer``."""
    ends = {"embeddings": "embedding.word_embeddings", "norm_f": "decoder.final_layernorm"}
    ours = {f"{name}.weight": tensors[f"model.{published}.weight"] for published, name in ends.items()}
    ours["output_layer.weight"] = tensors["lm_head.weight"]
    for layer, kind in enumerate(config.layers_block_type):
        theirs = below(tensors, f"model.layers.{layer}.")
        part = below(theirs, "mixer.")
        norm = {"linear_attention": "norm", "full_attention": "input_layernorm"}.get(kind, "pre_mlp_layernorm")
        own = {f"{norm}.weight": theirs["norm.weight"]}
        if kind == "linear_attention":
            own |= {f"mixer.{name}": tensor for name, tensor in part.items()}
        elif kind == "full_attention":
            heads = [part[f"{x}_proj.weight"].unflatten(0, (config.num_key_value_heads, -1)) for x in "qkv"]
            own["self_attention.linear_qkv.weight"] = torch.cat(heads, 1).flatten(0, 1)
            own["self_attention.linear_proj.weight"] = part["o_proj.weight"]
        else:
            places = {"mlp.": part, "mlp.shared_experts.": below(part, "shared_experts.")}
            for place, tensors_there in places.items():
                for name, fc in (("up", "linear_fc1"), ("down", "linear_fc2")):
                    for end in ("weight", "bias"):
                        if f"{name}_proj.{end}" in tensors_there:
                            own[f"{place}{fc}.{end}"] = tensors_there[f"{name}_proj.{end}"]
            if kind == "moe":
                own["mlp.router.weight"] = part["gate.weight"]
                for name, fc in (("up", "linear_fc1"), ("down", "linear_fc2")):
                    for expert, tensor in enumerate(part[f"experts.{name}_proj"]):
                        own[f"mlp.experts.local_experts.{expert}.{fc}.weight"] = tensor
        ours |= {f"decoder.layers.{layer}.{name}": tensor for name, tensor in own.items()}
    return ours


def delta_net(theirs: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """A gated delta net's parameters: published by key head, ours by what they make."""
    heads = config.linear_num_key_heads
    values = config.linear_num_value_heads // heads
    wide = values * config.linear_value_head_dim
    by_head = theirs["in_proj_qkvz.weight"].unflatten(0, (heads, -1))
    parts = by_head.split((config.linear_key_head_dim, config.linear_key_head_dim, wide, wide), dim=1)
    scalars = theirs["in_proj_ba.weight"].unflatten(0, (heads, -1)).split((values, values), dim=1)
    fused = torch.cat([part.flatten(0, 1) for part in (*parts, *scalars)])
    same = ("conv1d.weight", "dt_bias", "A_log", "out_proj.weight")
    return {
        "self_attention.in_proj.weight": fused,
        "self_attention.out_norm.weight": theirs["norm.weight"],
        **{f"self_attention.{name}": theirs[name] for name in same},
    }
