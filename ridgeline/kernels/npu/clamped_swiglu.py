"""The clamped SwiGLU of gpt-oss on torch_npu."""

from typing import Any

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_unless


def clamped_swiglu(gate_up: Tensor, *, limit: float = 7.0, alpha: float = 1.702, interleaved: bool = True) -> Tensor:
    """As `ridgeline.kernels.reference.clamped_swiglu.clamped_swiglu`; of two dims at least."""
    refuse_dtypes("clamped_swiglu", gate_up=gate_up)
    refuse_unless(gate_up.dim() > 1, "clamped_swiglu", "gate_up.dim()", gate_up.dim(), "must be 2 or more", "unsqueeze")
    return _ClampedSwiGlu.apply(gate_up.contiguous(), limit, alpha, interleaved)


class _ClampedSwiGlu(torch.autograd.Function):
    """torch_npu has no derivative for the op."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, limit: float, alpha: float, interleaved: bool) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.limit, ctx.alpha, ctx.interleaved = limit, alpha, interleaved
        return torch.ops.npu.npu_clipped_swiglu(
            gate_up, dim=-1, alpha=alpha, limit=limit, bias=1.0, interleaved=interleaved
        )

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gate_up,) = ctx.saved_tensors
        wide = gate_up.float()
        gate, up = (wide[..., ::2], wide[..., 1::2]) if ctx.interleaved else wide.chunk(2, -1)
        bounded_gate, bounded_up = gate.clamp(max=ctx.limit), up.clamp(-ctx.limit, ctx.limit)
        share = (ctx.alpha * bounded_gate).sigmoid()
        slope = share * (1 + ctx.alpha * bounded_gate * (1 - share))
        dgate = (dy * (bounded_up + 1) * slope).where(gate <= ctx.limit, 0.0)
        dup = (dy * bounded_gate * share).where(up.abs() <= ctx.limit, 0.0)
        dx = torch.stack((dgate, dup), dim=-1).flatten(-2) if ctx.interleaved else torch.cat((dgate, dup), dim=-1)
        return dx.to(gate_up.dtype), None, None, None
