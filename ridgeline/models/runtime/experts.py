"""Routed experts, of which some may give the token back, and experts that stand beside a layer.

Source:
    LongCat-Flash, arXiv 2509.01322, sections 2.1 and 2.2.
"""

from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_layer import TransformerLayer

from ridgeline.models.runtime.config import LayerConfig
from ridgeline.models.runtime.dispatch import dispatcher_of
from ridgeline.parallel.runtime.deferred import Deferred, LateProducts, carried_out_behind, waiting_from


class ExpertLayer(MoELayer):
    """Routed experts, and shared ones that may run while tokens are on their way to the others and back.

    Choices of the router beyond the experts cost nothing: they give back the token times its weight.
    """

    config: LayerConfig

    def __init__(
        self,
        config: LayerConfig,
        submodules: MoESubmodules | None = None,
        layer_number: int | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config, submodules, layer_number, pg_collection)
        groups = pg_collection or get_default_pg_collection()
        self.token_dispatcher = dispatcher_of(config, groups, self.local_expert_indices)
        self.deferred: Deferred | None = None

    def forward(
        self, hidden_states: torch.Tensor, intermediate_tensors: Any = None, padding_mask: Any = None
    ) -> tuple[torch.Tensor, None]:
        """What the experts add, (s/tp, b, h), and no bias."""
        if self.moe_layer_recompute and self.training:
            return tensor_parallel.checkpoint(self._combined, False, hidden_states), None  # pyright: ignore[reportReturnType]
        return self._combined(hidden_states), None

    def _combined(self, hidden: torch.Tensor) -> torch.Tensor:
        experts = self.config.num_moe_experts
        beside = self.shared_experts if "shared_experts" in self.config.moe_overlap else None
        assert beside is None or isinstance(beside, SharedExpertMLP)
        shared = self.shared_experts_compute(hidden) if beside is None else None
        weights_ne, taken_ne = self.route(hidden)
        rows, weights = self.preprocess(
            hidden, weights_ne[:, :experts].contiguous(), taken_ne[:, :experts].contiguous()
        )
        rows, weights = self.dispatch(rows, weights)
        late = LateProducts(self.deferred) if self.deferred and "weight_gradients" in self.config.moe_overlap else None
        rows = carried_out_behind(rows, late)
        activated = None if beside is None else _up(beside, hidden)
        output, _ = self.routed_experts_compute(rows, weights)
        output = self.combine(waiting_from(output, late))
        if beside is not None and activated is not None:
            shared = _down(beside, activated, hidden)
        output = self.postprocess(output, shared)
        if weights_ne.shape[1] == experts:
            return output
        own = weights_ne[:, experts:].sum(-1).view(*hidden.shape[:2], 1)
        return output + (own * hidden).to(output.dtype)


def _up(shared: SharedExpertMLP, hidden: torch.Tensor) -> torch.Tensor:
    """The first half of shared experts, to their activation."""
    return shared.activation_func(shared.linear_fc1(hidden)[0])


def _down(shared: SharedExpertMLP, activated: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The second half of shared experts, with the gate on them."""
    output, _ = shared.linear_fc2(activated)
    if shared.gate_weight is None:
        return output
    return output * torch.nn.functional.linear(hidden, shared.gate_weight).sigmoid()


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
