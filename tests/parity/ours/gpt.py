"""Parameters of GPT-2 and Bloom, from the names of transformers."""

from typing import Any

import torch

from tests.parity.ours.names import below

PARTS = {
    "bloom": ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
}
NORMS = {"bloom": ("input_layernorm", "post_attention_layernorm"), "gpt2": ("ln_1", "ln_2")}
ENDS = {
    "embedding.word_embeddings.weight": ("wte.weight", "word_embeddings.weight"),
    "embedding.position_embeddings.weight": ("wpe.weight",),
    **{f"embedding.norm.{kind}": (f"word_embeddings_layernorm.{kind}",) for kind in ("weight", "bias")},
    **{f"decoder.final_layernorm.{kind}": (f"ln_f.{kind}",) for kind in ("weight", "bias")},
}


def gpt_names(tensors: dict[str, Any], config: Any) -> dict[str, torch.Tensor]:
    """GPT-2's matrices are transposed, and its queries, keys and values lie by kind, which Bloom's do by head."""
    head = {} if config.tie_word_embeddings else {"output_layer.weight": tensors["lm_head.weight"]}
    tensors, transposed = below(tensors, "transformer."), config.model_type == "gpt2"
    ours = head | {
        name: tensors[published] for name, names in ENDS.items() for published in names if published in tensors
    }
    parts = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
    names = dict(zip(("input_layernorm", "pre_mlp_layernorm"), NORMS[config.model_type], strict=True))
    names |= dict(zip(parts, PARTS[config.model_type], strict=True))
    for layer in range(config.num_hidden_layers):
        theirs = below(tensors, f"h.{layer}.")
        for name, published in names.items():
            for kind in ("weight", "bias"):
                tensor = theirs[f"{published}.{kind}"]
                if transposed and tensor.dim() == 2:
                    tensor = tensor.T
                if transposed and name.endswith("qkv"):
                    tensor = tensor.unflatten(0, (3, config.num_attention_heads, -1)).transpose(0, 1).flatten(0, 2)
                ours[f"decoder.layers.{layer}.{name}.{kind}"] = tensor
    return ours
