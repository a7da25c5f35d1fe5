"""Projections that Megatron-core has no class for."""

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig


class BiasedColumnParallelLinear(ColumnParallelLinear):
    """A column-parallel projection with a bias, whatever Megatron-core's one switch for all biases says."""

    def __init__(self, *args: Any, bias: bool, **kwargs: Any) -> None:
        super().__init__(*args, bias=True, **kwargs)


class BiasedRowParallelLinear(RowParallelLinear):
    """A row-parallel projection with a bias, whatever Megatron-core's one switch for all biases says."""

    def __init__(self, *args: Any, bias: bool, **kwargs: Any) -> None:
        super().__init__(*args, bias=True, **kwargs)


class ReplicatedLinear(torch.nn.Module):
    """A projection that every tp rank holds whole; under sp each applies it to its own tokens only."""

    def __init__(self, config: TransformerConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(outputs, inputs, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]  Megatron's mark

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight)
