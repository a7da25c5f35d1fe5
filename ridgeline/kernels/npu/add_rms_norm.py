"""A residual sum and its RMSNorm on torch_npu, in one kernel."""

from typing import Any

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_shape


def add_rms_norm(x: Tensor, residual: Tensor, weight_h: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """As `ridgeline.kernels.reference.add_rms_norm.add_rms_norm`, with the sum rounded after the norm read it."""
    refuse_dtypes("add_rms_norm", x=x, residual=residual, weight_h=weight_h)
    refuse_shape("add_rms_norm", "residual", residual, tuple(x.shape))
    refuse_shape("add_rms_norm", "weight_h", weight_h, (x.shape[-1],))
    return _AddRmsNorm.apply(x, residual, weight_h, eps)


class _AddRmsNorm(torch.autograd.Function):
    """torch_npu has no derivative for the fused op; that of the norm is enough."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, weight_h: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, rstd, total = torch.ops.npu.npu_add_rms_norm(x, residual, weight_h, eps)
        ctx.save_for_backward(total, weight_h, rstd)
        return y, total

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dtotal: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        total, weight_h, rstd = ctx.saved_tensors
        dnorm, dweight = torch.ops.npu.npu_rms_norm_backward(dy.contiguous(), total, weight_h, rstd)
        dx = dnorm + dtotal
        return dx, dx, dweight.to(weight_h.dtype), None
