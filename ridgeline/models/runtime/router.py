"""The router of a layer of experts: its losses, its expert bias, and what it counts of the load.

Megatron-core's own knows no loss over groups, no bias beside softmax and one score of groups; it counts tokens in the
parameters' dtype, and a count in bf16 stops at 256.
"""

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import Router
from megatron.core.transformer.transformer_config import TransformerConfig

from ridgeline.core.model import Moe
from ridgeline.models.runtime.balance import balance_loss, z_loss
from ridgeline.models.runtime.kernels import Kernel
from ridgeline.models.runtime.routing import Routed, capacity_of, mix, route, within_capacity


class ExpertRouter(Router):
    """Tokens to weights of experts, (n, e) fp32, and to which experts they go.

    Zero experts are its last choices.

    Attributes:
        sparsemixer: The op, where it chooses.
        expert_bias: (e,) fp32, of what a token chooses by; None without.
        counted: (e + 2,) fp32, of a step so far: tokens that chose each expert, how many of their choices an expert had
            room for, and the sum of this rank's parts of their losses.
    """

    def __init__(
        self,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection | None,
        *,
        moe: Moe,
        sparsemixer: Kernel | None = None,
    ) -> None:
        super().__init__(config, pg_collection)
        self.moe = moe
        self.sparsemixer = sparsemixer
        choices = moe.experts + moe.zero_experts
        if moe.zero_experts:
            self.weight = torch.nn.Parameter(torch.empty(choices, config.hidden_size, dtype=config.params_dtype))
            self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]  Megatron's mark
        if moe.router_bias:
            self.bias = torch.nn.Parameter(torch.empty(choices, dtype=config.params_dtype))
            # Megatron's mark: under sp each tp rank routes its own tokens, so gradients are summed over tp.
            self.bias.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]
        self.register_buffer("expert_bias", torch.zeros(choices) if moe.expert_bias else None)
        self.counted = torch.zeros(choices + 2)

    def forward(self, input: torch.Tensor, padding_mask: None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Route (s/tp, b, h)."""
        moe, samples = self.moe, input.shape[1]
        logits_ne = self.gating(input).flatten(0, 1)
        routed = self._routed(logits_ne)
        weights_ne, taken_ne = routed.weights_ne, routed.chosen_ne
        if moe.capacity_factor is not None:
            capacity = capacity_of(len(logits_ne), moe)
            assert not moe.zero_experts, "a zero expert has room for all"
            taken_ne = within_capacity(weights_ne, taken_ne, capacity=capacity, drop=moe.drop, pad=moe.pad_to_capacity)
            weights_ne = weights_ne * taken_ne
        if not (self.training and torch.is_grad_enabled()):
            return weights_ne, taken_ne  # an evaluation, or a forward that is run once more
        loss = None
        if moe.aux_loss or moe.device_aux_loss or moe.comm_aux_loss:
            loss = balance_loss(routed, logits_ne, moe, samples=samples, group=self.tp_cp_group)
        if moe.z_loss:
            z = z_loss(logits_ne, moe, group=self.tp_cp_group)
            loss = z if loss is None else loss + z
        self._count(routed.chosen_ne, taken_ne, loss)
        return self._with_loss(weights_ne, loss), taken_ne

    def _routed(self, logits_ne: torch.Tensor) -> Routed:
        if self.sparsemixer is None:
            return route(logits_ne, self.moe, self.expert_bias)
        sample = self.training and self.moe.sampled
        return mix(logits_ne, self.moe, sparsemixer=self.sparsemixer, sample=sample)

    def _with_loss(self, weights_ne: torch.Tensor, loss: torch.Tensor | None) -> torch.Tensor:
        """The weights, whose backward starts the loss's too."""
        if loss is None:
            return weights_ne
        if self.calculate_per_token_loss:  # gradients are divided by all tokens of the step in the end
            loss = loss * (len(weights_ne) * self.tp_cp_group.size())
        return MoEAuxLossAutoScaler.apply(weights_ne, loss)  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def _count(self, chosen_ne: torch.Tensor, taken_ne: torch.Tensor, loss: torch.Tensor | None) -> None:
        self.counted[:-2] += chosen_ne.sum(0)
        self.counted[-2] += (chosen_ne & taken_ne).sum()
        if loss is not None:
            self.counted[-1] += loss

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Another device or dtype; the bias stays in fp32, since in bf16 its small moves would be lost."""
        bias = self.expert_bias
        super()._apply(fn, recurse)
        if bias is not None:
            self.expert_bias = bias.to(self.expert_bias.device)
        return self

    def routing(self, logits: torch.Tensor) -> Any:
        """Upstream's step between logits and weights, which `forward` takes by itself."""
        raise AssertionError("not called")
