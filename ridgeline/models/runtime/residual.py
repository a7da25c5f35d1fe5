"""How a part's output joins the residual stream."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_layer import TransformerLayer

Biased: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]
Add: TypeAlias = Callable[[Biased, torch.Tensor, float], torch.Tensor]


def scaled_add(scale: float, norm: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Callable[..., Add]:
    """What stands where Megatron-core has ``get_bias_dropout_add``: ``stream + scale * norm(output + bias)``."""

    def add(output: Biased, stream: torch.Tensor, dropout: float) -> torch.Tensor:
        assert dropout == 0.0
        x, bias = output
        x = x if bias is None else x + bias
        return stream + scale * (x if norm is None else norm(x))

    return lambda training, fused: add


class SandwichLayer(TransformerLayer):
    """A layer with a norm on each part's output too, as in Gemma 2."""

    def __init__(self, *args: Any, norm: ModuleSpec, scale: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.config
        for name, add in (("post_self_attn_layernorm", "self_attn_bda"), ("post_mlp_layernorm", "mlp_bda")):
            module = build_module(norm, config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)
            setattr(self, name, module)
            setattr(self, add, scaled_add(scale, module))
