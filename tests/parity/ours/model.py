"""Tensors of a transformers model under the names and in the layout of Megatron-core, written out once more."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from tests.parity.ours.attention import attention
from tests.parity.ours.feed_forward import feed_forward, halves
from tests.parity.ours.gpt import gpt_names
from tests.parity.ours.names import below
from tests.parity.ours.recurrent import hybrid_names, mamba_names

OWN_NAMES: Mapping[str, Callable[[dict[str, Any], Any], dict[str, torch.Tensor]]] = MappingProxyType(
    {"bloom": gpt_names, "gpt2": gpt_names, "mamba2": mamba_names, "nemotron_h": hybrid_names}
)
"""Models that share few names with a decoder of Llama's kind."""


def in_our_layout(tensors: dict[str, Any], config: Any) -> dict[str, torch.Tensor]:
    """Tensors of a transformers model under the names and in the layout of Megatron-core, written out once more."""
    if config.model_type in OWN_NAMES:
        return OWN_NAMES[config.model_type](tensors, config)
    ours = {
        "embedding.word_embeddings.weight": tensors["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": tensors["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        ours["output_layer.weight"] = tensors["lm_head.weight"]
    for name, published in (("output_layer.bias", "lm_head.bias"), ("decoder.final_layernorm.bias", "model.norm.bias")):
        if published in tensors:
            ours[name] = tensors[published]
    if config.model_type == "longcat_flash":
        tensors = tensors | halves(tensors, config)
    for layer in range(config.num_hidden_layers):
        theirs = below(tensors, f"model.layers.{layer}.")
        for name, tensor in {**attention(theirs, config), **feed_forward(theirs)}.items():
            ours[f"decoder.layers.{layer}.{name}"] = tensor
    return ours
