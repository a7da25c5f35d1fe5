"""What mixes the positions of a sequence: attention of several kinds, linear attention, state spaces."""

from collections.abc import Iterator
from typing import ClassVar, Literal, TypeAlias

from ridgeline.core.errors import Problem, divisors, one_of
from ridgeline.core.fields import at_least, check_spec, trait
from ridgeline.core.frozen import frozen
from ridgeline.core.model.rope import Rope


@frozen(kw_only=True)
class Attention:
    """Softmax attention with grouped key-value heads.

    Attributes:
        window: Positions a token sees, itself included; None sees all before it.
        qk_norm: An RMSNorm on queries and keys, each head apart or (``qk_norm_over="layer"``) all heads as one, before
            they turn or (``qk_norm_after_rope``) after.
        positions: What tells positions apart; ``rope`` says how where it is rotary.
        scale: Of the scores; None is ``head_dim ** -0.5``.
        softcap: Scores become ``softcap * tanh(scores / softcap)``.
        sinks: A learned score for each head that takes its share of the softmax and gives nothing.
        gate: A sigmoid gate on the output, made from the layer's input: one of each ``head``, or of each ``element``.
        shares_kv: Keys and values are those that the nearest layer below with its own projects; this one turns and
            norms the keys by itself.
    """

    kind: ClassVar[str] = "attention"
    heads: int = at_least(1)
    kv_heads: int = at_least(1)
    head_dim: int = at_least(1)
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    qk_norm_over: Literal["head", "layer"] = trait("head")
    qk_norm_after_rope: bool = trait(False)
    window: int | None = at_least(1, default=None)
    positions: Literal["rope", "alibi", "none"] = trait("rope")
    rope: Rope = Rope()
    scale: float | None = trait(None, above=0.0)
    softcap: float | None = trait(None, above=0.0)
    sinks: bool = trait(False)
    gate: Literal["none", "head", "element"] = trait("none")
    shares_kv: bool = trait(False)
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.heads % self.kv_heads:
            yield Problem("kv_heads", self.kv_heads, f"must divide heads={self.heads}", one_of(divisors(self.heads)))
        if self.positions == "rope" and self.rope.share == 1.0 and self.head_dim % 2:
            yield Problem("head_dim", self.head_dim, "must be even for rotary positions")


@frozen(kw_only=True)
class Indexer:
    """DeepSeek-V3.2's lightning indexer: cheap heads score all positions, attention sees the best ``topk`` of them.

    The first elements of a head turn as those of attention do, paired by the half layout or ``interleaved``.

    Attributes:
        shared: Attention sees what the nearest layer below with a choice of its own chose; this one has no weights.
    """

    heads: int = at_least(1)
    head_dim: int = at_least(1)
    topk: int = at_least(1)
    interleaved: bool = trait(False)
    shared: bool = trait(False)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Attributes:
        q_lora_rank: Of the queries' latent; None projects them straight from the hidden state.
        latent_scale: Latents are scaled by ``sqrt(hidden / rank)``, as LongCat-Flash does.
        norm_eps: Of the latents' norms; None is the model's.
        indexer: Chooses the positions that attention sees.
    """

    kind: ClassVar[str] = "latent_attention"
    heads: int = at_least(1)
    q_lora_rank: int | None = at_least(1, default=None)
    kv_lora_rank: int = at_least(1)
    nope_head_dim: int = at_least(1)
    rope_head_dim: int = at_least(1)
    v_head_dim: int = at_least(1)
    latent_scale: bool = trait(False)
    norm_eps: float | None = trait(None, above=0.0)
    indexer: Indexer | None = trait(None)
    rope: Rope = Rope()
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.indexer is not None and self.q_lora_rank is None:
            yield Problem("q_lora_rank", None, "an indexer reads the queries' latent", "set it, or leave indexer out")
        if self.indexer is not None and self.indexer.head_dim < self.rope_head_dim:
            rule = f"must hold rope_head_dim={self.rope_head_dim}, the elements that turn"
            yield Problem("indexer.head_dim", self.indexer.head_dim, rule)

    @property
    def qk_head_dim(self) -> int:
        """Of a query or key head: the part without positions, then the rotary one."""
        return self.nope_head_dim + self.rope_head_dim


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

    def _problems(self) -> Iterator[Problem]:
        if self.value_heads % self.key_heads:
            rule = f"must divide value_heads={self.value_heads}"
            yield Problem("key_heads", self.key_heads, rule, one_of(divisors(self.value_heads)))

    @property
    def key_width(self) -> int:
        """Of all keys, and of all queries."""
        return self.key_heads * self.key_head_dim

    @property
    def value_width(self) -> int:
        """Of all values."""
        return self.value_heads * self.value_head_dim


@frozen(kw_only=True)
class Mamba2:
    """A selective state space (arXiv 2405.21060): ``state`` numbers for each of ``heads * head_dim`` channels.

    ``groups`` of heads share the projections B and C into the state and out of it. Steps are ``step_min`` at least.
    """

    kind: ClassVar[str] = "mamba2"
    heads: int = at_least(1)
    head_dim: int = at_least(1, default=64)
    state: int = at_least(1, default=128)
    groups: int = at_least(1, default=1)
    conv_kernel: int = at_least(1, default=4)
    conv_bias: bool = True
    bias: bool = False
    chunk: int = at_least(1, default=256)
    step_min: float = trait(0.0, minimum=0.0)
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.heads % self.groups:
            yield Problem("groups", self.groups, f"must divide heads={self.heads}", one_of(divisors(self.heads)))

    @property
    def width(self) -> int:
        """Channels."""
        return self.heads * self.head_dim


Mixer: TypeAlias = Attention | LatentAttention | GatedDeltaNet | Mamba2
