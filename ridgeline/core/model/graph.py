"""Blocks, and the model they make."""

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import attrs

from ridgeline.core.errors import Problem
from ridgeline.core.fields import at_least, check_spec, real, trait
from ridgeline.core.frozen import frozen
from ridgeline.core.model.feed_forwards import FeedForward, Moe
from ridgeline.core.model.mixers import Attention, Indexer, LatentAttention, Mixer

Norm: TypeAlias = Literal["rms", "zero_centred_rms", "layer"]
"""``zero_centred_rms`` holds its weights as offsets from 1; ``layer`` is a LayerNorm with a bias."""


@frozen(kw_only=True)
class Block:
    """One layer: ``x += mixer(norm(x))``, then ``x += feed_forward(norm(x))``; either part may be absent.

    Attributes:
        norms: ``sandwich`` has a norm on each part's output too.
        shortcut: Experts beside the layer: they read what the feed-forward reads, and join after the next layer.
    """

    mixer: Mixer | None = None
    feed_forward: FeedForward | None = None
    norms: Literal["pre", "sandwich"] = trait("pre")
    shortcut: Moe | None = trait(None)
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.mixer is None and self.feed_forward is None:
            yield Problem("mixer", None, "a layer needs a mixer, a feed_forward, or both")
        if self.shortcut is not None and self.feed_forward is None:
            yield Problem("shortcut", self.shortcut.kind, "reads the input of a feed_forward", "set feed_forward")

    @property
    def shares_below(self) -> bool:
        """Whether it takes keys and values, or a choice of positions, that a layer below made."""
        match self.mixer:
            case Attention(shares_kv=shares) | LatentAttention(indexer=Indexer(shared=shares)):
                return shares
            case _:
                return False


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

    Attributes:
        family: The Hugging Face family it came from and goes back to.
        norm: Of every layer, and before the head.
        mtp: Multi-token-prediction layers (DeepSeek-V3, arXiv 2412.19437, section 2.2); embedding and head are the
            model's.
        mtp_block: The block of each of them; None is one like the last layer's.
        mtp_before_norm: They read what goes into the norm before the head, and not what comes out of it.
        learned_positions: A table of ``max_position`` learned vectors added to the embedding.
        embedding_scale, embedding_norm: What is done to an embedded token.
        residual_scale: Of each part's output before it joins the stream.
        logit_scale, logit_softcap: What is done to the logits, in this order.
        head_bias: The head has a bias.
        normalized_head: Each row of the head is used at length 1.
    """

    name: str = "custom"
    family: str = "custom"
    vocab_size: int = at_least(1)
    hidden: int = at_least(1)
    max_position: int = at_least(1)
    blocks: tuple[Repeat, ...] = attrs.field(converter=attrs.Converter(_merge_runs))
    norm: Norm = trait("rms")
    norm_eps: float = real(1e-5, above=0.0)
    tied_embeddings: bool = False
    mtp: int = at_least(0, default=0)
    mtp_block: Block | None = trait(None)
    mtp_before_norm: bool = trait(False)
    learned_positions: bool = trait(False)
    embedding_scale: float = trait(1.0, above=0.0)
    embedding_norm: bool = trait(False)
    residual_scale: float = trait(1.0, above=0.0)
    logit_scale: float = trait(1.0, above=0.0)
    logit_softcap: float | None = trait(None, above=0.0)
    head_bias: bool = trait(False)
    normalized_head: bool = trait(False)
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

    @property
    def block_ahead(self) -> Block:
        """The block of a layer of multi-token prediction."""
        return self.mtp_block or self.blocks[-1].block

    @property
    def kinds(self) -> tuple[Block, ...]:
        """Every kind of block, that of multi-token prediction too, each once."""
        ahead = (self.block_ahead,) if self.mtp else ()
        return tuple(dict.fromkeys((*(run.block for run in self.blocks), *ahead)))

    @property
    def moes(self) -> tuple[Moe, ...]:
        """Every kind of routed experts, in layers and beside them, each once."""
        parts = (part for block in self.kinds for part in (block.feed_forward, block.shortcut))
        return tuple(dict.fromkeys(part for part in parts if isinstance(part, Moe)))

    @property
    def indexers(self) -> tuple[Indexer, ...]:
        """Every kind of indexer, each once."""
        mixers = (block.mixer for block in self.kinds)
        found = (mixer.indexer for mixer in mixers if isinstance(mixer, LatentAttention))
        return tuple(dict.fromkeys(indexer for indexer in found if indexer is not None))

    @property
    def shares_between_layers(self) -> bool:
        """Whether a layer takes what one below it made."""
        return any(run.block.shares_below for run in self.blocks)

    @property
    def shares_embedding(self) -> bool:
        """Whether the model's end reads the embedding too, for a tied head or for multi-token prediction."""
        return self.tied_embeddings or self.mtp > 0
