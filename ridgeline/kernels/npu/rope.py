"""Rotary positions on torch_npu."""

from typing import Any

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_shape, refuse_unless

MAX_WIDTH = 894
MAX_BATCH_HEADS = 999


class _Turn(torch.autograd.Function):
    """Turn by tables; the backward turns back, and so keeps the tables only.

    torch_npu's own backward also gives gradients of the tables, for which every layer would keep its inputs.
    """

    @staticmethod
    def forward(ctx: Any, x_sbnd: Tensor, cos_sb1d: Tensor, sin_sb1d: Tensor, mode: str) -> Tensor:
        ctx.save_for_backward(cos_sb1d, sin_sb1d)
        ctx.mode = mode
        return torch.ops.npu.npu_rotary_mul(x_sbnd, cos_sb1d, sin_sb1d, mode)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos_sb1d, sin_sb1d = ctx.saved_tensors
        return torch.ops.npu.npu_rotary_mul(grads[0].contiguous(), cos_sb1d, -sin_sb1d, ctx.mode), None, None, None


def rope(x_sbnd: Tensor, cos_sb1d: Tensor, sin_sb1d: Tensor, *, interleaved: bool = False) -> Tensor:
    """As `ridgeline.kernels.reference.rope.rope`; up to 894 turned elements, and b*n < 1000 if interleaved."""
    refuse_dtypes("rope", x_sbnd=x_sbnd, cos_sb1d=cos_sb1d, sin_sb1d=sin_sb1d)
    width, batch_heads = cos_sb1d.shape[-1], x_sbnd.shape[1] * x_sbnd.shape[2]
    fits = width % 2 == 0 and width <= MAX_WIDTH
    refuse_unless(fits, "rope", "cos_sb1d.shape[-1]", width, f"must be even and <= {MAX_WIDTH}")
    refuse_unless(width <= x_sbnd.shape[-1], "rope", "cos_sb1d.shape[-1]", width, f"must be <= {x_sbnd.shape[-1]}")
    samples = 1 if cos_sb1d.shape[1] == 1 else x_sbnd.shape[1]
    for path, table in (("cos_sb1d", cos_sb1d), ("sin_sb1d", sin_sb1d)):
        refuse_shape("rope", path, table, (x_sbnd.shape[0], samples, 1, width))
    fits = not interleaved or batch_heads <= MAX_BATCH_HEADS
    refuse_unless(
        fits, "rope", "b*n", batch_heads, f"must be <= {MAX_BATCH_HEADS} if interleaved", "use the half layout"
    )
    mode = "interleave" if interleaved else "half"
    turned, rest = x_sbnd.split((width, x_sbnd.shape[-1] - width), dim=-1)
    turned = _Turn.apply(turned.contiguous(), cos_sb1d, sin_sb1d, mode)
    assert isinstance(turned, Tensor)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
