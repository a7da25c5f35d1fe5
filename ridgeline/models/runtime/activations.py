"""The activation between the two projections of a feed-forward."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional

from ridgeline.core.model import Activation
from ridgeline.kernels.model_ops import BOUND_BY_THEIR_OPS, activation_op
from ridgeline.models.runtime.kernels import Kernels

TORCH: Mapping[Activation, tuple[Callable[..., torch.Tensor], Mapping[str, Any]]] = MappingProxyType(
    {
        "gelu": (functional.gelu, {}),
        "gelu_tanh": (functional.gelu, {"approximate": "tanh"}),
        "relu": (functional.relu, {}),
    }
)
"""Those that torch itself computes in one kernel on every device."""


def activation_spec(activation: Activation, limit: float | None, kernels: Kernels) -> ModuleSpec:
    """A feed-forward's activation as Megatron-core builds it; gated ones take a fused projection of gate, then up."""
    if (called := activation_op(activation, limit)) is None:
        function, options = TORCH[activation]
    else:
        op, options = called
        function = kernels[op]
    if limit is not None and activation not in BOUND_BY_THEIR_OPS:
        function = partial(_bounded, function=function, limit=limit)
    return ModuleSpec(module=ActivationModule, params={"function": function, "options": options})


class ActivationModule(MegatronModule):
    """A function of the first projection's output, as a module of the layer."""

    def __init__(
        self, config: TransformerConfig, *, function: Callable[..., torch.Tensor], options: Mapping[str, Any]
    ) -> None:
        super().__init__(config)
        self.function = function
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, **self.options)


def _bounded(x: torch.Tensor, *, function: Callable[..., torch.Tensor], limit: float, **options: Any) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    return function(torch.cat((gate.clamp(max=limit), up.clamp(-limit, limit)), -1), **options)
