"""The activation between the two projections of a feed-forward."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional

from ridgeline.core.model import Activation
from ridgeline.kernels.model_ops import ACTIVATION_OPS
from ridgeline.models.runtime.kernels import Kernels

TORCH: Mapping[Activation, tuple[Callable[..., torch.Tensor], Mapping[str, Any]]] = MappingProxyType(
    {
        "gelu": (functional.gelu, {}),
        "gelu_tanh": (functional.gelu, {"approximate": "tanh"}),
        "relu": (functional.relu, {}),
    }
)
"""Those that torch itself computes in one kernel on every device."""


def activation_spec(activation: Activation, kernels: Kernels) -> ModuleSpec:
    """An activation as Megatron-core builds it; gated ones take a fused projection of gate, then up."""
    if activation in TORCH:
        function, options = TORCH[activation]
    else:
        op, options = ACTIVATION_OPS[activation]
        function = kernels[op]
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
