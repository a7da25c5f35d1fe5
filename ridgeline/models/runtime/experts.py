"""Routed experts of which some give the token back, and experts that stand beside a layer.

Source:
    LongCat-Flash, arXiv 2509.01322, sections 2.1 and 2.2.
"""

from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_layer import TransformerLayer


class ZeroExpertLayer(MoELayer):
    """Experts, and choices of the router beyond them that cost nothing: they give back the token times its weight."""

    def forward(
        self, hidden_states: torch.Tensor, intermediate_tensors: Any = None, padding_mask: Any = None
    ) -> tuple[torch.Tensor, None]:
        """What the experts and the token itself add, (s/tp, b, h), and no bias."""
        if self.moe_layer_recompute and self.training:
            return tensor_parallel.checkpoint(self._combined, False, hidden_states), None  # pyright: ignore[reportReturnType]
        return self._combined(hidden_states), None

    def _combined(self, hidden: torch.Tensor) -> torch.Tensor:
        experts = self.config.num_moe_experts
        shared = self.shared_experts_compute(hidden)
        weights_ne, taken_ne = self.route(hidden)
        rows, weights = self.preprocess(
            hidden, weights_ne[:, :experts].contiguous(), taken_ne[:, :experts].contiguous()
        )
        output, _ = self.routed_experts_compute(*self.dispatch(rows, weights))
        output = self.postprocess(self.combine(output), shared)
        own = weights_ne[:, experts:].sum(-1).view(*hidden.shape[:2], 1)
        return output + (own * hidden).to(output.dtype)


class ShortcutLayer(TransformerLayer):
    """A layer that may have experts beside its feed-forward, which read what that reads; the next layer adds them.

    Until then their output travels where Megatron-core hands on a layer's context.
    """

    def __init__(self, *args: Any, experts: ModuleSpec | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shortcut = None
        if experts is not None:
            self.shortcut = build_module(
                experts, config=self.config, layer_number=self.layer_number, pg_collection=self.pg_collection
            )

    def forward(
        self, *args: Any, context: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The stream, and what the experts beside this layer made of it.

        Args:
            args, kwargs: Of Megatron-core's layer.
            context: Of the experts beside the layer before.
        """
        hidden, _ = self._forward_attention(*args, **kwargs)
        normed = self._forward_pre_mlp_layernorm(hidden)
        beside = None if self.shortcut is None else self.shortcut(normed)[0]
        output = tensor_parallel.checkpoint(self.mlp, False, normed) if self.recompute_mlp else self.mlp(normed)
        stream = self._forward_post_mlp(output, hidden)
        assert isinstance(stream, torch.Tensor)
        return stream if context is None else stream + context, beside
