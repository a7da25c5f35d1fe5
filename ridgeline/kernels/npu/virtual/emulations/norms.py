"""Normalisations."""

import torch
from torch import Tensor


def rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Gamma may cover several of the last dims; the second output is 1/rms in fp32."""
    dims = tuple(range(-gamma.dim(), 0))
    rstd = (input.double().square().mean(dims, keepdim=True) + epsilon).rsqrt()
    return (input.double() * rstd * gamma.double()).to(input.dtype), rstd.float()


def rms_norm_backward(dy: Tensor, input: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of gamma comes in fp32."""
    dims = tuple(range(-gamma.dim(), 0))
    normed = input.double() * rstd.double()
    scaled = dy.double() * gamma.double()
    dx = rstd.double() * (scaled - normed * (scaled * normed).mean(dims, keepdim=True))
    dgamma = (dy.double() * normed).reshape(-1, *gamma.shape).sum(0)
    return dx.to(input.dtype), dgamma.float()


def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Gives the norm of the sum, 1/rms, and the sum."""
    total = (x1.double() + x2.double()).to(x1.dtype)
    y, rstd = rms_norm(total, gamma, epsilon)
    return y, rstd, total


def scaled_masked_softmax(x: Tensor, mask: Tensor, scale: float = 1.0, fixed_triu_mask: bool = False) -> Tensor:
    """True hides; a hidden score becomes -10000 before the softmax."""
    if fixed_triu_mask:
        mask = torch.ones(x.shape[-2:], dtype=torch.bool).triu(1)
    return (x.double() * scale).masked_fill(mask, -10000.0).softmax(-1).to(x.dtype)


def scaled_masked_softmax_backward(
    y_grad: Tensor, y: Tensor, mask: Tensor, scale: float, fixed_triu_mask: bool
) -> Tensor:
    """No gradient reaches what was hidden."""
    if fixed_triu_mask:
        mask = torch.ones(y.shape[-2:], dtype=torch.bool).triu(1)
    dy, wide = y_grad.double(), y.double()
    dx = scale * wide * (dy - (dy * wide).sum(-1, keepdim=True))
    return dx.masked_fill(mask, 0.0).to(y.dtype)
