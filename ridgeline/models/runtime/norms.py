"""The norms of a layer, each calling the kernel that the plan chose."""

import torch
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

from ridgeline.core.model import Norm
from ridgeline.models.runtime.kernels import Kernel, Kernels


def norm_spec(norm: Norm, kernels: Kernels, *, later: bool = False) -> ModuleSpec:
    """A norm as Megatron-core builds it, with ``config``, ``hidden_size`` and ``eps``; ``later``, a `LaterNorm`."""
    if norm == "layer":
        return ModuleSpec(module=LayerNorm, params={"layer_norm": kernels["layer_norm"]})
    params = {"rms_norm": kernels["rms_norm"], "zero_centred": norm == "zero_centred_rms"}
    return ModuleSpec(module=LaterNorm if later else RmsNorm, params=params)


class RmsNorm(torch.nn.Module):
    """``x / rms(x) * weight`` over the last dim; zero-centred, ``* (1 + weight)``."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float, *, rms_norm: Kernel, zero_centred: bool = False
    ) -> None:
        super().__init__()
        self.weight = _parameter(hidden_size, config)
        self.eps = eps
        self.rms_norm = rms_norm
        self.zero_centred = zero_centred

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rms_norm(x, self.weight, eps=self.eps, zero_centred=self.zero_centred)


class LaterNorm(RmsNorm):
    """A norm that Megatron-core passes over: of heads that turn first, of what multi-token prediction reads first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        """The norm, for when its time has come."""
        return super().forward(x)


class LayerNorm(torch.nn.Module):
    """``(x - mean(x)) / std(x) * weight + bias`` over the last dim."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, *, layer_norm: Kernel) -> None:
        super().__init__()
        self.weight = _parameter(hidden_size, config)
        self.bias = _parameter(hidden_size, config)
        self.eps = eps
        self.layer_norm = layer_norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer_norm(x, self.weight, self.bias, eps=self.eps)


def _parameter(size: int, config: TransformerConfig) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.empty(size, dtype=config.params_dtype))
    # Megatron's mark: under sp each tp rank sees its own tokens, so gradients are summed over tp.
    parameter.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]
    return parameter
