"""Projections whose weight gradients may wait, while their input gradients go on.

Legend: ``m`` = rows, ``k`` = inputs, ``n`` = outputs.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    LinearWithGradAccumulationAndAsyncCommunication,
    RowParallelLinear,
    linear_with_frozen_weight,
    linear_with_grad_accumulation_and_async_allreduce,
)
from torch import distributed

from ridgeline.models.runtime.experts import ExpertLayer
from ridgeline.models.runtime.grouped_experts import GroupedExperts
from ridgeline.models.runtime.linears import ReplicatedLinear
from ridgeline.parallel.runtime.deferred import Deferred, offer


def let_wait(module: torch.nn.Module, deferred: Deferred) -> None:
    """Have every projection within a module offer the products of its own weights' gradients."""
    for part in module.modules():
        match part:
            case ColumnParallelLinear(weight=torch.nn.Parameter()) | RowParallelLinear():
                part._forward_impl = partial(_linear, deferred=deferred)
            case ReplicatedLinear():
                part.multiply = partial(_linear, deferred=deferred, **_ALONE)
            case GroupedExperts():
                part.multiply = partial(_linear, deferred=deferred, **_ALONE)
                part.grouped_matmul = partial(_grouped, part.grouped_matmul, deferred=deferred)
            case ExpertLayer():
                part.deferred = deferred
            case _:
                pass


_UPSTREAM: Any = LinearWithGradAccumulationAndAsyncCommunication

_ALONE: Mapping[str, Any] = MappingProxyType(
    {"bias": None, "allreduce_dgrad": False, "sequence_parallel": False, "tp_group": None}
)
"""A projection that sends nothing."""


def _linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    allreduce_dgrad: bool,
    sequence_parallel: bool,
    tp_group: distributed.ProcessGroup | None,
    *,
    deferred: Deferred,
    **unused: Any,
) -> torch.Tensor:
    """As Megatron-core's function of this signature."""
    if not weight.requires_grad:
        return linear_with_frozen_weight(input, weight, bias, False, allreduce_dgrad, sequence_parallel, tp_group)
    if not isinstance(weight, torch.nn.Parameter):  # made of one, to which its gradient flows on
        return linear_with_grad_accumulation_and_async_allreduce(
            input, weight, bias, False, allreduce_dgrad, sequence_parallel, tp_group=tp_group
        )
    return _Linear.apply(input, weight, bias, allreduce_dgrad, sequence_parallel, tp_group, deferred)  # pyright: ignore[reportReturnType]


def _grouped(
    kernel: Any, x_mk: torch.Tensor, weights_nk: Sequence[torch.Tensor], counts_e: torch.Tensor, *, deferred: Deferred
) -> torch.Tensor:
    later = partial(offer, deferred) if all(weight.requires_grad for weight in weights_nk) else None
    return kernel(x_mk, weights_nk, counts_e, later=later)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: torch.Tensor,
        weight: torch.nn.Parameter,
        bias: torch.Tensor | None,
        reduces: bool,
        gathers: bool,
        group: distributed.ProcessGroup | None,
        deferred: Deferred,
    ) -> torch.Tensor:
        ctx.deferred = deferred
        return _UPSTREAM.forward(ctx, x, weight, bias, False, reduces, gathers, None, None, group)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        group = ctx.tp_group if ctx.sequence_parallel else None
        if not offer(ctx.deferred, (weight,), partial(_product, x, dy, group=group)):
            return *_UPSTREAM.backward(ctx, dy)[:3], None, None, None, None
        dx = dy.matmul(weight)
        if ctx.sequence_parallel:
            scattered = torch.empty_like(x)
            distributed.reduce_scatter_tensor(scattered, dx, group=group)
            dx = scattered
        elif ctx.allreduce_dgrad:
            distributed.all_reduce(dx, group=ctx.tp_group)
        return dx, None, dy.flatten(0, -2).sum(0) if ctx.use_bias else None, None, None, None, None


def _product(x: torch.Tensor, dy: torch.Tensor, *, group: distributed.ProcessGroup | None) -> tuple[torch.Tensor]:
    """The weight's gradient, (n, k), where a group's ranks hold parts of the input's first dim."""
    if group is not None:
        whole = x.new_empty(x.shape[0] * group.size(), *x.shape[1:])
        distributed.all_gather_into_tensor(whole, x.contiguous(), group=group)
        x = whole
    return (dy.flatten(0, -2).t().matmul(x.flatten(0, -2)),)
