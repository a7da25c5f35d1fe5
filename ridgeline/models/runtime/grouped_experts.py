"""Routed experts multiplied together, over weights that stay apart."""

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.moe.experts import SequentialMLP
from torch.nn import functional

from ridgeline.models.runtime.adapters import adapters_of
from ridgeline.models.runtime.kernels import Kernel


class ColumnWeight(ColumnParallelLinear):
    """An expert's first matrix, read by a product of all experts; by a call, so that hooks wait for its gather."""

    def forward(self) -> torch.nn.Parameter:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert self.weight is not None
        return self.weight


class RowWeight(RowParallelLinear):
    """An expert's second matrix, as `ColumnWeight`."""

    def forward(self) -> torch.nn.Parameter:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.weight


class GroupedExperts(SequentialMLP):
    """Experts without biases: each has the modules and weights of Megatron-core's, and two products serve them all.

    Partial outputs of etp ranks are added up by the dispatcher.
    """

    def __init__(self, *args: Any, grouped_matmul: Kernel, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.grouped_matmul = grouped_matmul
        self.multiply = functional.linear

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  called by position
        self, rows_mh: torch.Tensor, counts_e: torch.Tensor, weights_m: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Each expert's output for its rows, times the row's weight, and no bias.

        Args:
            rows_mh: Rows of all experts, one expert's after the other's.
            counts_e: int64, how many each has.
            weights_m: Of each row, fp32.
        """
        activation = self.local_experts[0].activation_func
        hidden = activation(self._products(rows_mh, "linear_fc1", counts_e))  # pyright: ignore[reportCallIssue]  a module
        scaled = (hidden * weights_m.unsqueeze(-1)).to(hidden.dtype)
        return self._products(scaled, "linear_fc2", counts_e), None

    def _products(self, x_mk: torch.Tensor, name: str, counts_e: torch.Tensor) -> torch.Tensor:
        linears = [getattr(expert, name) for expert in self.local_experts]
        output_mn = self._product(x_mk, [linear() for linear in linears], counts_e)
        if (pairs := adapters_of(linears)) is None:
            return output_mn
        low_mr = self._product(x_mk, [a() for a in pairs.a], counts_e)
        return output_mn + pairs.scale * self._product(low_mr, [b() for b in pairs.b], counts_e)

    def _product(self, x_mk: torch.Tensor, weights_nk: list[torch.Tensor], counts_e: torch.Tensor) -> torch.Tensor:
        if len(weights_nk) == 1:
            return self.multiply(x_mk, weights_nk[0])
        return self.grouped_matmul(x_mk, weights_nk, counts_e)
