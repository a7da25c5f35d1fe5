"""The bounded SwiGLU of Step-3.5-Flash on torch_npu.

A SiLU is at most ``limit`` where its input is at most some bound, since it rises wherever it is positive: so the fused
SwiGLU of bounded halves is the bounded SwiGLU.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_unless


def bounded_swiglu(gate_up: Tensor, *, limit: float) -> Tensor:
    """As `ridgeline.kernels.reference.bounded_swiglu.bounded_swiglu`."""
    refuse_dtypes("bounded_swiglu", gate_up=gate_up)
    width = gate_up.shape[-1]
    refuse_unless(width % 2 == 0, "bounded_swiglu", "gate_up.shape[-1]", width, "must be even: a gate and an up half")
    return _BoundedSwiGlu.apply(gate_up, limit)


class _BoundedSwiGlu(torch.autograd.Function):
    """It keeps its input alone, and bounds it again in the backward."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.limit = limit
        return torch.ops.npu.npu_swiglu(_bounded(gate_up, limit), -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gate_up,) = ctx.saved_tensors
        dx = torch.ops.npu.npu_swiglu_backward(dy.contiguous(), _bounded(gate_up, ctx.limit), dim=-1)
        (gate, up), (dgate, dup) = gate_up.chunk(2, -1), dx.chunk(2, -1)
        dgate.masked_fill_(gate > bound_of(ctx.limit), 0.0)
        dup.masked_fill_(up.abs() > ctx.limit, 0.0)
        return dx, None


def _bounded(gate_up: Tensor, limit: float) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return torch.cat((gate.clamp(max=bound_of(limit)), up.clamp(-limit, limit)), -1)


@cache
def bound_of(limit: float) -> float:
    """The positive number whose SiLU is ``limit``, by Newton's method.

    Example:
        >>> round(bound_of(7.0), 6)
        7.006343
    """
    x = limit + 1.0
    for _ in range(60):
        share = 1 / (1 + math.exp(-x))
        x -= (x * share - limit) / (share * (1 + x * (1 - share)))
    return x
