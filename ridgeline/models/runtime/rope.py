"""Rotary tables: the cosines and sines of each position, for every way of scaling positions.

Legend: ``s`` = sequence, ``b`` = microbatch, ``d`` = head_dim.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs
import torch

from ridgeline.core.model import DynamicRope, LinearRope, Llama3Rope, Rope, YarnRope


@attrs.frozen(eq=False)
class RotaryTable:
    """What turns a head at each position: (s, b or 1, 1, d), in the dtype of activations."""

    cos_sb1d: torch.Tensor
    sin_sb1d: torch.Tensor


def rotary_table(
    rope: Rope, *, head_dim: int, positions_bs: torch.Tensor, length: int, dtype: torch.dtype
) -> RotaryTable:
    """Turn positions into the table that the rope op multiplies heads with.

    Args:
        rope: The base and the scaling.
        head_dim: Elements of a head; all of them turn.
        positions_bs: (b, s), integers; b may be 1 when all samples share their positions.
        length: Positions of the longest document; it matters to dynamic scaling only.
        dtype: Of the activations. Angles are computed in fp32 whatever it is.

    Source:
        huggingface/transformers 5.23, modeling_rope_utils.py; its operations in its order, since an angle of position
        10,000 keeps but three digits after a rounding of its frequency.
    """
    frequency_d2, attention_factor = rope_frequencies(rope, head_dim=head_dim, length=length)
    angles_sbd2 = positions_bs.t().float().unsqueeze(-1) * frequency_d2.to(positions_bs.device)
    angles_sb1d = torch.cat((angles_sbd2, angles_sbd2), dim=-1).unsqueeze(2)
    return RotaryTable(
        (angles_sb1d.cos() * attention_factor).to(dtype), (angles_sb1d.sin() * attention_factor).to(dtype)
    )


def rope_frequencies(rope: Rope, *, head_dim: int, length: int) -> tuple[torch.Tensor, float]:
    """Radians per position of each pair of elements, (head_dim/2,) fp32, and a factor of all cosines and sines."""
    return SCALINGS[type(rope.scaling)](rope.scaling, rope.base, head_dim, length)


def _wavelengths(base: float, head_dim: int) -> torch.Tensor:
    return base ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)


def _default(scaling: None, base: float, head_dim: int, length: int) -> tuple[torch.Tensor, float]:
    return 1.0 / _wavelengths(base, head_dim), 1.0


def _linear(scaling: LinearRope, base: float, head_dim: int, length: int) -> tuple[torch.Tensor, float]:
    return 1.0 / _wavelengths(base, head_dim) / scaling.factor, 1.0


def _dynamic(scaling: DynamicRope, base: float, head_dim: int, length: int) -> tuple[torch.Tensor, float]:
    stretch = scaling.factor * max(length, scaling.original_max_position) / scaling.original_max_position
    grown = base * (stretch - (scaling.factor - 1)) ** (head_dim / (head_dim - 2))
    return 1.0 / _wavelengths(grown, head_dim), 1.0


def _llama3(scaling: Llama3Rope, base: float, head_dim: int, length: int) -> tuple[torch.Tensor, float]:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    frequency = 1.0 / _wavelengths(base, head_dim)
    period = 2 * math.pi / frequency
    divided = torch.where(period > scaling.original_max_position / low, frequency / scaling.factor, frequency)
    kept_share = (scaling.original_max_position / period - low) / (high - low)
    ramp = (1 - kept_share) * divided / scaling.factor + kept_share * divided
    on_ramp = ~(period < scaling.original_max_position / high) & ~(period > scaling.original_max_position / low)
    return torch.where(on_ramp, ramp, divided), 1.0


def _yarn(scaling: YarnRope, base: float, head_dim: int, length: int) -> tuple[torch.Tensor, float]:
    def dim_of(rotations: float) -> float:
        return head_dim * math.log(scaling.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dim_of(scaling.beta_fast)), 0)
    high = min(math.ceil(dim_of(scaling.beta_slow)), head_dim - 1)
    steps = torch.arange(head_dim // 2, dtype=torch.float32)
    kept_share = 1 - torch.clamp((steps - low) / (high - low + (0.001 if low == high else 0)), 0, 1)
    wavelength = _wavelengths(base, head_dim)
    frequency = 1.0 / (scaling.factor * wavelength) * (1 - kept_share) + 1.0 / wavelength * kept_share
    return frequency, _yarn_attention_factor(scaling)


def _yarn_attention_factor(scaling: YarnRope) -> float:
    def temperature(mscale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return temperature(scaling.mscale) / temperature(scaling.mscale_all_dim)
    return temperature(1.0)


SCALINGS: Mapping[type, Callable[[Any, float, int, int], tuple[torch.Tensor, float]]] = MappingProxyType(
    {type(None): _default, LinearRope: _linear, DynamicRope: _dynamic, Llama3Rope: _llama3, YarnRope: _yarn}
)
