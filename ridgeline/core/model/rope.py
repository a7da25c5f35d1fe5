"""Rotary positions and the ways to stretch them over longer sequences."""

from collections.abc import Iterator
from typing import ClassVar, TypeAlias

from ridgeline.core.errors import Problem
from ridgeline.core.fields import at_least, check_spec, real, reals, trait
from ridgeline.core.frozen import frozen


@frozen(kw_only=True)
class LinearRope:
    """Positions divided by ``factor``."""

    kind: ClassVar[str] = "linear"
    factor: float = real(minimum=1.0)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class DynamicRope:
    """NTK-aware base that grows once a sequence is longer than ``original_max_position``.

    With ``alpha`` the base is multiplied by ``alpha ** (dim / (dim - 2))`` whatever the length, as Hunyuan does.
    """

    kind: ClassVar[str] = "dynamic"
    factor: float = real(minimum=1.0)
    original_max_position: int = at_least(1)
    alpha: float | None = trait(None, above=0.0)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class YarnRope:
    """YaRN (arXiv 2309.00071): frequencies blended between kept and divided, attention scaled by a temperature.

    ``truncate`` rounds the ends of the ramp between the two to whole dims.
    """

    kind: ClassVar[str] = "yarn"
    factor: float = real(minimum=1.0)
    original_max_position: int = at_least(1)
    beta_fast: float = real(32.0, above=0.0)
    beta_slow: float = real(1.0, above=0.0)
    attention_factor: float | None = real(None)
    mscale: float | None = real(None)
    mscale_all_dim: float | None = real(None)
    truncate: bool = trait(True)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Llama3Rope:
    """Llama 3.1's piecewise scaling: high frequencies kept, low ones divided by ``factor``, a ramp between."""

    kind: ClassVar[str] = "llama3"
    factor: float = real(minimum=1.0)
    low_freq_factor: float = real(above=0.0)
    high_freq_factor: float = real(above=0.0)
    original_max_position: int = at_least(1)
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.high_freq_factor <= self.low_freq_factor:
            rule = f"must be > low_freq_factor={self.low_freq_factor}, for a ramp between the two"
            yield Problem("high_freq_factor", self.high_freq_factor, rule)


@frozen(kw_only=True)
class LongRope:
    """LongRoPE (arXiv 2402.13753): each frequency divided by a factor of its own, by others in long sequences.

    ``short_mscale`` and ``long_mscale`` scale queries and keys; without them ``attention_factor`` does, and without
    that either, ``sqrt(1 + ln(max_position / original_max_position) / ln(original_max_position))``.
    """

    kind: ClassVar[str] = "longrope"
    short_factors: tuple[float, ...] = reals(())
    long_factors: tuple[float, ...] = reals(())
    original_max_position: int = at_least(1)
    attention_factor: float | None = real(None)
    short_mscale: float | None = real(None, above=0.0)
    long_mscale: float | None = real(None, above=0.0)
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if len(self.short_factors) != len(self.long_factors) or not self.short_factors:
            rule = f"must be as many as short_factors={len(self.short_factors)}, one a frequency"
            yield Problem("long_factors", self.long_factors, rule)
        for name in ("short_factors", "long_factors"):
            if not all(factor > 0.0 for factor in getattr(self, name)):
                yield Problem(name, getattr(self, name), "must all be > 0.0: frequencies are divided by them")


RopeScaling: TypeAlias = LinearRope | DynamicRope | YarnRope | Llama3Rope | LongRope


@frozen(kw_only=True)
class Rope:
    """Rotary positions.

    In the half layout dim i is paired with dim i + rotary_dim/2, ``interleaved`` pairs dims 2i and 2i+1. Only the first
    ``share`` of a head's dims rotate.
    """

    base: float = real(10000.0, above=0.0)
    share: float = trait(1.0, above=0.0, maximum=1.0)
    interleaved: bool = trait(False)
    scaling: RopeScaling | None = None
    __attrs_post_init__ = check_spec
