"""Gated activations and rotary positions."""

import math

import torch
from torch import Tensor


def swiglu(input: Tensor, dim: int = -1) -> Tensor:
    """The first half is the gate."""
    gate, up = input.double().chunk(2, dim)
    return (gate * gate.sigmoid() * up).to(input.dtype)


def swiglu_backward(grad_output: Tensor, input: Tensor, dim: int = -1) -> Tensor:
    gate, up = input.double().chunk(2, dim)
    share, dy = gate.sigmoid(), grad_output.double()
    dgate = dy * up * share * (1 + gate * (1 - share))
    return torch.cat((dgate, dy * gate * share), dim).to(input.dtype)


def clipped_swiglu(
    x: Tensor,
    *,
    group_index: Tensor | None = None,
    dim: int = -1,
    alpha: float = 1.702,
    limit: float = 7.0,
    bias: float = 1.0,
    interleaved: bool = True,
) -> Tensor:
    """Gate and up alternate if interleaved; the gate is bounded above, the up on both sides."""
    assert group_index is None
    assert dim in (-1, x.dim() - 1)
    wide = x.double()
    gate, up = (wide[..., ::2], wide[..., 1::2]) if interleaved else wide.chunk(2, -1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (gate * (alpha * gate).sigmoid() * (up + bias)).to(x.dtype)


def _gelu(x: Tensor, approximate: int) -> tuple[Tensor, Tensor]:
    """GELU and its derivative."""
    if approximate:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        tanh = inner.tanh()
        slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
        return 0.5 * x * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * slope
    share = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x * share, share + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def geglu(input: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False) -> tuple[Tensor, Tensor]:
    """The activated half is the left one if ``activate_left``, else the right one; its GELU comes too."""
    left, right = input.double().chunk(2, dim)
    activated, other = (left, right) if activate_left else (right, left)
    gelu, _ = _gelu(activated, approximate)
    return (gelu * other).to(input.dtype), gelu.to(input.dtype)


def geglu_grad(
    grad_output: Tensor, input: Tensor, gelu: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False
) -> Tensor:
    left, right = input.double().chunk(2, dim)
    activated, other = (left, right) if activate_left else (right, left)
    _, slope = _gelu(activated, approximate)
    dy = grad_output.double()
    dactivated, dother = dy * other * slope, dy * gelu.double()
    halves = (dactivated, dother) if activate_left else (dother, dactivated)
    return torch.cat(halves, dim).to(input.dtype)


def _turned(x: Tensor, mode: str) -> Tensor:
    """Each pair (a, b) as (-b, a): of halves, or of neighbours."""
    if mode == "half":
        first, second = x.chunk(2, -1)
        return torch.cat((-second, first), -1)
    assert mode == "interleave", mode
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def rotary_mul(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    """``x * cos + turned(x) * sin`` with cosines and sines of all elements."""
    assert rotate is None
    assert input.dim() == r1.dim() == r2.dim() == 4
    x = input.double()
    return (x * r1.double() + _turned(x, rotary_mode) * r2.double()).to(input.dtype)


def rotary_mul_backward(
    grad: Tensor, input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half"
) -> tuple[Tensor, Tensor, Tensor]:
    """Turning is antisymmetric: its transpose is its negative."""
    dy, x = grad.double(), input.double()
    dx = dy * r1.double() - _turned(dy * r2.double(), rotary_mode)
    dcos = (dy * x).sum_to_size(r1.shape)
    dsin = (dy * _turned(x, rotary_mode)).sum_to_size(r2.shape)
    return dx.to(input.dtype), dcos.to(r1.dtype), dsin.to(r2.dtype)
