"""The model graph: a vocabulary, a run-length list of blocks, a final norm and a head."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from ridgeline.core.errors import Problem, divisors, one_of
from ridgeline.core.fields import at_least, check_spec, real
from ridgeline.core.frozen import frozen


@frozen(kw_only=True)
class LinearRope:
    """Positions divided by ``factor``."""

    kind: ClassVar[str] = "linear"
    factor: float = real(minimum=1.0)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class DynamicRope:
    """NTK-aware base that grows once a sequence is longer than ``original_max_position``."""

    kind: ClassVar[str] = "dynamic"
    factor: float = real(minimum=1.0)
    original_max_position: int = at_least(1)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class YarnRope:
    """YaRN (arXiv 2309.00071): frequencies blended between kept and divided, attention scaled by a temperature."""

    kind: ClassVar[str] = "yarn"
    factor: float = real(minimum=1.0)
    original_max_position: int = at_least(1)
    beta_fast: float = real(32.0, above=0.0)
    beta_slow: float = real(1.0, above=0.0)
    attention_factor: float | None = real(None)
    mscale: float | None = real(None)
    mscale_all_dim: float | None = real(None)
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


RopeScaling: TypeAlias = LinearRope | DynamicRope | YarnRope | Llama3Rope


@frozen(kw_only=True)
class Rope:
    """Rotary positions in the half layout: dim i is paired with dim i + rotary_dim/2."""

    base: float = real(10000.0, above=0.0)
    scaling: RopeScaling | None = None
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Attention:
    """Softmax attention with grouped key-value heads.

    ``window`` counts the positions a token sees, itself included; None sees all before it.
    """

    kind: ClassVar[str] = "attention"
    heads: int = at_least(1)
    kv_heads: int = at_least(1)
    head_dim: int = at_least(1)
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    window: int | None = at_least(1, default=None)
    rope: Rope = Rope()
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.heads % self.kv_heads:
            yield Problem("kv_heads", self.kv_heads, f"must divide heads={self.heads}", one_of(divisors(self.heads)))
        if self.head_dim % 2:
            yield Problem("head_dim", self.head_dim, "must be even for rotary positions")


@frozen(kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    kind: ClassVar[str] = "latent_attention"
    heads: int = at_least(1)
    q_lora_rank: int | None = at_least(1, default=None)
    kv_lora_rank: int = at_least(1)
    nope_head_dim: int = at_least(1)
    rope_head_dim: int = at_least(1)
    v_head_dim: int = at_least(1)
    rope: Rope = Rope()
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class GatedDeltaNet:
    """Linear attention with a gated delta rule (arXiv 2412.06464) and a short causal convolution."""

    kind: ClassVar[str] = "gated_delta_net"
    key_heads: int = at_least(1)
    value_heads: int = at_least(1)
    key_head_dim: int = at_least(1)
    value_head_dim: int = at_least(1)
    conv_kernel: int = at_least(1, default=4)
    __attrs_post_init__ = check_spec


Mixer: TypeAlias = Attention | LatentAttention | GatedDeltaNet


@frozen(kw_only=True)
class Mlp:
    """``down(silu(gate(x)) * up(x))``; ``ffn_hidden`` is the width of gate and of up."""

    kind: ClassVar[str] = "mlp"
    ffn_hidden: int = at_least(1)
    activation: Literal["swiglu"] = "swiglu"
    bias: bool = False
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Moe:
    """``experts`` MLPs of width ``ffn_hidden``, ``topk`` of them for each token.

    ``normalize_topk`` makes the weights of the chosen experts sum to 1; ``aux_loss`` and ``z_loss`` are coefficients.
    """

    kind: ClassVar[str] = "moe"
    experts: int = at_least(1)
    topk: int = at_least(1)
    ffn_hidden: int = at_least(1)
    normalize_topk: bool = True
    aux_loss: float = real(0.0, minimum=0.0)
    z_loss: float = real(0.0, minimum=0.0)
    activation: Literal["swiglu"] = "swiglu"
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.topk > self.experts:
            yield Problem("topk", self.topk, f"must be <= experts={self.experts}")


FeedForward: TypeAlias = Mlp | Moe


@frozen(kw_only=True)
class Block:
    """One layer: ``x += mixer(norm(x))``, then ``x += feed_forward(norm(x))``."""

    mixer: Mixer
    feed_forward: FeedForward
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Repeat:
    """``count`` equal blocks in a row."""

    block: Block
    count: int = at_least(1)
    __attrs_post_init__ = check_spec


def _merge_runs(blocks: Any) -> Any:
    if not isinstance(blocks, (list, tuple)) or not all(isinstance(run, Repeat) for run in blocks):
        return tuple(blocks) if isinstance(blocks, list) else blocks
    merged: list[Repeat] = []
    for run in blocks:
        if merged and merged[-1].block == run.block:
            merged[-1] = attrs.evolve(run, count=merged[-1].count + run.count)
        else:
            merged.append(run)
    return tuple(merged)


@frozen(kw_only=True)
class ModelSpec:
    """A decoder-only language model.

    ``blocks`` is run-length encoded, with equal neighbours merged on creation, so that equal models have equal text.
    ``family`` names the Hugging Face family it came from and goes back to. ``mtp`` counts multi-token-prediction
    layers.
    """

    name: str = "custom"
    family: str = "custom"
    vocab_size: int = at_least(1)
    hidden: int = at_least(1)
    max_position: int = at_least(1)
    blocks: tuple[Repeat, ...] = attrs.field(converter=_merge_runs)
    norm_eps: float = real(1e-5, above=0.0)
    tied_embeddings: bool = False
    mtp: int = at_least(0, default=0)
    init_std: float = real(0.02, above=0.0)
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if not self.blocks:
            yield Problem("blocks", self.blocks, "must hold at least one block")

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return sum(run.count for run in self.blocks)

    def layers(self) -> tuple[Block, ...]:
        """Every block, in model order."""
        return tuple(run.block for run in self.blocks for _ in range(run.count))
