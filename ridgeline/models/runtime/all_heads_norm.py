"""One RMSNorm over all heads of a layer, which lie on all tp ranks.

Legend: as in `ridgeline.models.runtime.attention`.
"""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import distributed


class AllHeadsNorm(torch.nn.Module):
    """``x / rms(x of all heads) * weight``; a rank holds the weights of its own heads."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, *, heads: int) -> None:
        super().__init__()
        group = parallel_state.get_tensor_model_parallel_group()
        assert isinstance(group, distributed.ProcessGroup)
        self.group = group
        self.width = heads * hidden_size
        own = self.width // self.group.size()
        self.weight = torch.nn.Parameter(torch.empty(own, dtype=config.params_dtype))
        self.eps = eps

    def forward(self, x_sbnd: torch.Tensor) -> torch.Tensor:
        wide = x_sbnd.float()
        squares_sb = _SumOverRanks.apply(wide.square().sum((-2, -1), keepdim=True), self.group)
        scaled = wide * torch.rsqrt(squares_sb / self.width + self.eps)
        return self.weight.unflatten(0, x_sbnd.shape[-2:]) * scaled.to(x_sbnd.dtype)


class _SumOverRanks(torch.autograd.Function):
    """The sum over a group, of which every rank makes something of its own: gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _SumOverRanks._sum(x, group)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _SumOverRanks._sum(dy, ctx.group), None

    @staticmethod
    def _sum(x: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
        if group.size() > 1:
            x = x.clone()
            distributed.all_reduce(x, group=group)
        return x
