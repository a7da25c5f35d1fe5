"""Rotary positions on torch_npu."""

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_unless

MAX_WIDTH = 894
MAX_BATCH_HEADS = 999


def rope(x_sbnd: Tensor, cos_sb1d: Tensor, sin_sb1d: Tensor, *, interleaved: bool = False) -> Tensor:
    """As `ridgeline.kernels.reference.rope.rope`; up to 894 turned elements, and b*n < 1000 if interleaved."""
    refuse_dtypes("rope", x_sbnd=x_sbnd, cos_sb1d=cos_sb1d, sin_sb1d=sin_sb1d)
    width, batch_heads = cos_sb1d.shape[-1], x_sbnd.shape[1] * x_sbnd.shape[2]
    fits = width % 2 == 0 and width <= MAX_WIDTH
    refuse_unless(fits, "rope", "cos_sb1d.shape[-1]", width, f"must be even and <= {MAX_WIDTH}")
    fits = not interleaved or batch_heads <= MAX_BATCH_HEADS
    refuse_unless(
        fits, "rope", "b*n", batch_heads, f"must be <= {MAX_BATCH_HEADS} if interleaved", "use the half layout"
    )
    mode = "interleave" if interleaved else "half"
    turned, rest = x_sbnd.split((width, x_sbnd.shape[-1] - width), dim=-1)
    turned = torch.ops.npu.npu_rotary_mul(turned.contiguous(), cos_sb1d, sin_sb1d, mode)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
