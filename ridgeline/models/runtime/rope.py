"""Rotary tables: the cosines and sines of each position, for every way of scaling positions.

Legend: ``s`` = sequence, ``b`` = microbatch, ``d`` = head_dim.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs
import torch

from ridgeline.core.model import DynamicRope, LinearRope, Llama3Rope, LongRope, Rope, YarnRope


@attrs.frozen(eq=False)
class RotaryTable:
    """What turns a head at each position: (s, b or 1, 1, d), in the dtype of activations."""

    cos_sb1d: torch.Tensor
    sin_sb1d: torch.Tensor


def rotary_table(
    rope: Rope, *, rotary_dim: int, positions_bs: torch.Tensor, length: int, max_position: int, dtype: torch.dtype
) -> RotaryTable:
    """Turn positions into the table that the rope op multiplies heads with.

    Args:
        rope: The base and the scaling.
        rotary_dim: Elements of a head that turn.
        positions_bs: (b, s), integers; b may be 1 when all samples share their positions.
        length: Positions of the longest document; it matters to dynamic scaling and to LongRoPE.
        max_position: Positions that the model was made for; it matters to LongRoPE.
        dtype: Of the activations. Angles are computed in fp32 whatever it is.

    Source:
        huggingface/transformers 5.23, modeling_rope_utils.py; its operations in its order, since an angle of position
        10,000 keeps but three digits after a rounding of its frequency.
    """
    frequency_d2, attention_factor = rope_frequencies(
        rope, rotary_dim=rotary_dim, length=length, max_position=max_position
    )
    angles_sbd2 = positions_bs.t().float().unsqueeze(-1) * frequency_d2.to(positions_bs.device)
    if rope.interleaved:
        angles_sbd = angles_sbd2.repeat_interleave(2, dim=-1)
    else:
        angles_sbd = torch.cat((angles_sbd2, angles_sbd2), dim=-1)
    angles_sb1d = angles_sbd.unsqueeze(2)
    return RotaryTable(
        (angles_sb1d.cos() * attention_factor).to(dtype), (angles_sb1d.sin() * attention_factor).to(dtype)
    )


def rope_frequencies(rope: Rope, *, rotary_dim: int, length: int, max_position: int) -> tuple[torch.Tensor, float]:
    """Radians per position of each pair of elements, (rotary_dim/2,) fp32, and a factor of all cosines and sines."""
    if isinstance(rope.scaling, LongRope):
        return _longrope(rope.scaling, rope.base, rotary_dim, length, max_position)
    return SCALINGS[type(rope.scaling)](rope.scaling, rope.base, rotary_dim, length)


def _wavelengths(base: float, head_dim: int) -> torch.Tensor:
    return base ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)


def _default(scaling: None, base: float, head_dim: int, length: int) -> tuple[torch.Tensor, float]:
    return 1.0 / _wavelengths(base, head_dim), 1.0


def _linear(scaling: LinearRope, base: float, head_dim: int, length: int) -> tuple[torch.Tensor, float]:
    return 1.0 / _wavelengths(base, head_dim) / scaling.factor, 1.0


def _dynamic(scaling: DynamicRope, base: float, head_dim: int, length: int) -> tuple[torch.Tensor, float]:
    if scaling.alpha is not None:
        return 1.0 / _wavelengths(base * scaling.alpha ** (head_dim / (head_dim - 2)), head_dim), 1.0
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


def _longrope(
    scaling: LongRope, base: float, head_dim: int, length: int, max_position: int
) -> tuple[torch.Tensor, float]:
    original = scaling.original_max_position
    long = length > original
    factors = torch.tensor(scaling.long_factors if long else scaling.short_factors, dtype=torch.float32)
    frequency = 1.0 / (factors * _wavelengths(base, head_dim))
    mscale = scaling.long_mscale if long else scaling.short_mscale
    if mscale is not None:
        return frequency, mscale
    if scaling.attention_factor is not None:
        return frequency, scaling.attention_factor
    stretch = max_position / original
    return frequency, 1.0 if stretch <= 1.0 else math.sqrt(1 + math.log(stretch) / math.log(original))


def _yarn(scaling: YarnRope, base: float, head_dim: int, length: int) -> tuple[torch.Tensor, float]:
    def dim_of(rotations: float) -> float:
        return head_dim * math.log(scaling.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dim_of(scaling.beta_fast), dim_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    steps = torch.arange(head_dim // 2, dtype=torch.float32)
    kept_share = 1 - torch.clamp((steps - low) / (high - low + (0.001 if low == high else 0)), 0, 1)
    wavelength = _wavelengths(base, head_dim)
    frequency = 1.0 / (scaling.factor * wavelength) * (1 - kept_share) + 1.0 / wavelength * kept_share
    return frequency, _yarn_attention_factor(scaling)


def _yarn_attention_factor(scaling: YarnRope) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_temperature(scaling.factor, scaling.mscale) / yarn_temperature(
            scaling.factor, scaling.mscale_all_dim
        )
    return yarn_temperature(scaling.factor, 1.0)


def yarn_temperature(factor: float, mscale: float) -> float:
    """YaRN's scale of queries and of keys for a context ``factor`` times as long (arXiv 2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


SCALINGS: Mapping[type, Callable[[Any, float, int, int], tuple[torch.Tensor, float]]] = MappingProxyType(
    {type(None): _default, LinearRope: _linear, DynamicRope: _dynamic, Llama3Rope: _llama3, YarnRope: _yarn}
)
