"""Weights in NF4, the 4-bit format of QLoRA, in plain torch.

Legend: ``n`` = output features, ``k`` = input features, ``m`` = tokens.
"""

from typing import Any

import attrs
import torch
from torch import Tensor

BLOCK = 64
"""Weights that share a scale."""
SCALE_BLOCK = 256
"""Scales that share a scale of their own."""

LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)
"""Quantiles of a normal distribution with zero among them: arXiv 2305.14314, section 3 and appendix E."""


@attrs.frozen(kw_only=True, eq=False)
class Nf4:
    """A quantised weight.

    Attributes:
        codes: (elements/2,) uint8: two codes a byte, the first one in the upper half.
        scales: (blocks,) int8: of each block its largest magnitude, less ``mean``, over its scale's, times 127.
        scale_scales: (blocks of scales,) fp32.
        mean: (), fp32.
        shape: Of the weight; its elements are a multiple of 64.
        dtype: Of the weight.
    """

    codes: Tensor
    scales: Tensor
    scale_scales: Tensor
    mean: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype


def quantise_nf4(weight: Tensor) -> Nf4:
    """The nearest code of every element, of blocks scaled to magnitude one; scales themselves are kept in 8 bits.

    Args:
        weight: Any shape of a multiple of 64 elements, float, finite.

    Source:
        arXiv 2305.14314, section 3. The 8-bit scales are linear, not bitsandbytes' dynamic map.
    """
    blocks = weight.detach().reshape(-1, BLOCK).float()
    largest = blocks.abs().amax(1)
    mean = largest.mean()
    centred = torch.nn.functional.pad(largest - mean, (0, -len(largest) % SCALE_BLOCK)).view(-1, SCALE_BLOCK)
    scale_scales = centred.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)
    scales = (centred / scale_scales[:, None] * 127).round().to(torch.int8).flatten()[: len(largest)]
    # Codes are chosen for the scales that will be read back, so that their rounding costs no more than it must.
    unit = blocks / _magnitudes(scales, scale_scales, mean).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    levels = torch.tensor(LEVELS, device=weight.device)
    codes = torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).view(-1, 2)
    return Nf4(
        codes=codes[:, 0] << 4 | codes[:, 1],
        scales=scales,
        scale_scales=scale_scales,
        mean=mean,
        shape=tuple(weight.shape),
        dtype=weight.dtype,
    )


def dequantise_nf4(weight: Nf4) -> Tensor:
    """The weight that a quantised one stands for, in its shape and dtype."""
    codes = torch.stack((weight.codes >> 4, weight.codes & 15), dim=-1).view(-1, BLOCK).int()
    levels = torch.tensor(LEVELS, device=weight.codes.device)[codes]
    scaled = levels * _magnitudes(weight.scales, weight.scale_scales, weight.mean)[:, None]
    return scaled.view(weight.shape).to(weight.dtype)


def nf4_matmul(x_mk: Tensor, weight_nk: Nf4) -> Tensor:
    """``x @ weight^T``; the backward dequantises anew, and no gradient flows to the weight.

    Args:
        x_mk: (..., k), the dtype of the weight.
        weight_nk: Of shape (n, k).

    Returns:
        (..., n), the same dtype.
    """
    return _Nf4Matmul.apply(x_mk, weight_nk)


def _magnitudes(scales: Tensor, scale_scales: Tensor, mean: Tensor) -> Tensor:
    """Of each block, from its 8 bits."""
    return scales.float() / 127 * scale_scales.repeat_interleave(SCALE_BLOCK)[: len(scales)] + mean


class _Nf4Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_mk: Tensor, weight_nk: Nf4) -> Tensor:
        ctx.weight = weight_nk
        return x_mk @ dequantise_nf4(weight_nk).t()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return dy @ dequantise_nf4(ctx.weight), None
