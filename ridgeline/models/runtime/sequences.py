"""A microbatch as attention reads it: the turns of its positions, and where its documents end."""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TypeAlias

import attrs
import torch

from ridgeline.core.model import Attention, Indexer, LatentAttention, Mixer, ModelSpec, Rope
from ridgeline.kernels.documents import document_lengths
from ridgeline.models.runtime.context.slices import own_positions
from ridgeline.models.runtime.rope import RotaryTable, rope_frequencies, rotary_table
from ridgeline.parallel.context import Pieces

Turn: TypeAlias = tuple[Rope, int]
"""Rotary positions, and how many elements of a head they turn."""


class KvCache(Protocol):
    """What layers remember of the tokens before those of this forward, for generation."""

    def extend(self, layer: int, key_sbgd: torch.Tensor, value_sbgd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a layer's keys and values (layers count from 1), and give all so far."""
        ...

    def state(self, layer: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What a recurrent layer remembered: its last inputs, (b, w, c), and its memory; None at the beginning."""
        ...

    def remember(self, layer: int, inputs_bwc: torch.Tensor, memory: torch.Tensor) -> None:
        """Keep both for the next tokens."""
        ...


@attrs.define(eq=False)
class Handed:
    """What one layer makes and others share; None before the first.

    Keys and values, (s, b, 2, g, d), as they are projected, or the positions that an indexer chose, (b, s, k).
    """

    shared: torch.Tensor | None


@attrs.frozen(kw_only=True, eq=False)
class Sequences:
    """What the attention of every layer reads of a microbatch besides its hidden states.

    Attributes:
        tables: The rotary table of each kind of positions in the model.
        cu_seqlens: Where documents begin and the last one ends, counted over all tokens of all samples, one after
            another: int32, on the host; None when each sample is one document.
        cache: Earlier keys and values; None when training.
        handed: Where a layer leaves what others share, and finds it; None where no layer does.
    """

    tables: Mapping[Turn, RotaryTable]
    cu_seqlens: torch.Tensor | None = None
    cache: KvCache | None = None
    handed: Handed | None = None


class Microbatch(Protocol):
    """What the model is given: tensors of (b, s) on any device.

    ``cu_seqlens``: where documents begin and the last one ends, counted over b*s tokens, int32, on the host. None when
    each sample is one document; then positions are 0 .. s-1 and ``position_ids`` is not read.
    """

    @property
    def tokens(self) -> torch.Tensor: ...
    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def loss_mask(self) -> torch.Tensor: ...
    @property
    def position_ids(self) -> torch.Tensor: ...
    @property
    def cu_seqlens(self) -> torch.Tensor | None: ...


def sequences_of(
    model: ModelSpec, batch: Microbatch, *, pieces: Pieces, device: torch.device, dtype: torch.dtype
) -> Sequences:
    """What the attention of every layer needs of a microbatch, on the device, where this rank computes ``pieces``."""
    if batch.cu_seqlens is None:
        seq_len = batch.tokens.shape[1]
        return Sequences(tables=tables_of(model, seq_len=seq_len, pieces=pieces, device=device, dtype=dtype))
    positions = own_positions(batch.position_ids, pieces).to(device, non_blocking=True)
    longest = int(batch.cu_seqlens.diff().max())
    return Sequences(tables=rotary_tables(model, positions, longest=longest, dtype=dtype), cu_seqlens=batch.cu_seqlens)


def tables_of(
    model: ModelSpec, *, seq_len: int, pieces: Pieces, device: torch.device, dtype: torch.dtype
) -> Mapping[Turn, RotaryTable]:
    """The rotary tables of samples that are one document each, the same for all of a length."""
    positions_bs = own_positions(torch.arange(seq_len, device=device).unsqueeze(0), pieces)
    return rotary_tables(model, positions_bs, longest=seq_len, dtype=dtype)


def rotary_tables(
    model: ModelSpec, positions_bs: torch.Tensor, *, longest: int, dtype: torch.dtype
) -> Mapping[Turn, RotaryTable]:
    """The rotary tables of these positions, of which the longest document has ``longest``."""
    return {
        (rope, rotary_dim): rotary_table(
            rope,
            rotary_dim=rotary_dim,
            positions_bs=positions_bs,
            length=longest,
            max_position=model.max_position,
            dtype=dtype,
        )
        for rope, rotary_dim in _turns(model)
    }


def turns_alike(model: ModelSpec, length: int, other: int) -> bool:
    """Whether texts of both lengths turn the same position alike."""
    for rope, rotary_dim in _turns(model):
        (frequency, factor), (other_frequency, other_factor) = (
            rope_frequencies(rope, rotary_dim=rotary_dim, length=size, max_position=model.max_position)
            for size in (length, other)
        )
        if factor != other_factor or not torch.equal(frequency, other_frequency):
            return False
    return True


def _turns(model: ModelSpec) -> set[Turn]:
    return {turn for block in model.kinds for turn in turns_of(block.mixer)}


def turns_of(mixer: Mixer | None) -> Iterator[Turn]:
    """All the ways in which a mixer turns heads."""
    if turn := turn_of(mixer):
        yield turn
    if isinstance(mixer, LatentAttention) and mixer.indexer is not None and not mixer.indexer.shared:
        yield indexer_turn(mixer, mixer.indexer)


def indexer_turn(mixer: LatentAttention, indexer: Indexer) -> Turn:
    """How an indexer turns the first elements of its heads: as far as attention does, but paired in its own way."""
    return attrs.evolve(mixer.rope, interleaved=indexer.interleaved), mixer.rope_head_dim


def turn_of(mixer: Mixer | None) -> Turn | None:
    """How a mixer turns its heads, if it does.

    Example:
        >>> turn_of(Attention(heads=4, kv_heads=2, head_dim=8, rope=Rope(share=0.5)))[1]
        4
    """
    match mixer:
        case Attention(positions="rope", rope=rope, head_dim=head_dim):
            return rope, int(head_dim * rope.share)
        case LatentAttention(rope=rope, rope_head_dim=rope_head_dim):
            return rope, rope_head_dim
        case _:
            return None


def each_document(
    mix: Callable[..., torch.Tensor], *parts_bs: torch.Tensor, cu_seqlens: torch.Tensor | None
) -> torch.Tensor:
    """``mix`` over samples that are one document each, or over every document apart, so that none knows of another.

    Args:
        mix: Of tensors (b, s, ...), one document a sample; gives one alike.
        parts_bs: What it reads.
        cu_seqlens: Where documents end, as `Sequences` has it.
    """
    if cu_seqlens is None:
        return mix(*parts_bs)
    b, s = parts_bs[0].shape[:2]
    lengths = document_lengths(cu_seqlens.tolist(), size=s, samples=b)
    documents = zip(*(x.flatten(0, 1).unsqueeze(0).split(lengths, dim=1) for x in parts_bs), strict=True)
    return torch.cat([mix(*parts) for parts in documents], dim=1)[0].unflatten(0, (b, s))
