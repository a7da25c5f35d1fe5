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


class BiasedExpertRowParallelLinear(RowParallelLinear):
    """An expert's second projection, whose bias every etp rank holds whole and adds its share of.

    Outputs of the etp ranks are added up later, each rank's bias among them; each sees the gradient of all tokens.
    """

    def __init__(self, *args: Any, bias: bool, tp_group: torch.distributed.ProcessGroup, **kwargs: Any) -> None:
        super().__init__(*args, bias=True, tp_group=tp_group, **kwargs)
        self.sharers = tp_group.size()
        self.explicit_expert_comm = True  # the dispatcher adds outputs up, whatever the layout
        # Megatron's mark, which it sets under sp: tp ranks hold other experts, whose gradients are not to be mixed.
        self.bias.sequence_parallel = False  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]

    def forward(self, input_: torch.Tensor) -> Any:
        output, bias = super().forward(input_)
        if bias is not None and self.sharers > 1:
            bias = bias.detach() / self.sharers + (bias - bias.detach())
        return output, bias


class ReplicatedLinear(torch.nn.Module):
    """A projection that every tp rank holds whole; under sp each applies it to its own tokens only."""

    def __init__(self, config: TransformerConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(outputs, inputs, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]  Megatron's mark
        self.multiply = torch.nn.functional.linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.multiply(x, self.weight)


def column_parallel(
    config: TransformerConfig, inputs: int, outputs: int, group: torch.distributed.ProcessGroup, *, bias: bool = False
) -> ColumnParallelLinear:
    """A projection whose outputs are split over tp."""
    return ColumnParallelLinear(
        inputs,
        outputs,
        config=config,
        init_method=config.init_method,  # pyright: ignore[reportArgumentType]  never called: weights are written later
        bias=bias,
        gather_output=False,
        tp_group=group,
    )


def row_parallel(
    config: TransformerConfig, inputs: int, outputs: int, group: torch.distributed.ProcessGroup, *, bias: bool = False
) -> RowParallelLinear:
    """A projection whose inputs are split over tp; it gives its output, and the bias that is still to add, if any."""
    return RowParallelLinear(
        inputs,
        outputs,
        config=config,
        init_method=config.output_layer_init_method,  # pyright: ignore[reportArgumentType]  as above
        bias=bias,
        input_is_parallel=True,
        skip_bias_add=True,
        tp_group=group,
    )
