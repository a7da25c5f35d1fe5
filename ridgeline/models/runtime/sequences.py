"""A microbatch as attention reads it: the turns of its positions, and where its documents end."""

from collections.abc import Mapping
from typing import Protocol

import torch

from ridgeline.core.model import Attention, ModelSpec, Rope
from ridgeline.models.runtime.modules import Sequences
from ridgeline.models.runtime.rope import RotaryTable, rotary_table


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


def sequences_of(model: ModelSpec, batch: Microbatch, *, device: torch.device, dtype: torch.dtype) -> Sequences:
    """What the attention of every layer needs of a microbatch, on the device."""
    if batch.cu_seqlens is None:
        return Sequences(tables=tables_of(model, seq_len=batch.tokens.shape[1], device=device, dtype=dtype))
    positions, longest = batch.position_ids.to(device, non_blocking=True), int(batch.cu_seqlens.diff().max())
    return Sequences(tables=_tables(model, positions, longest, dtype), cu_seqlens=batch.cu_seqlens)


def tables_of(
    model: ModelSpec, *, seq_len: int, device: torch.device, dtype: torch.dtype
) -> Mapping[Rope, RotaryTable]:
    """The rotary tables of samples that are one document each, the same for all of a length."""
    return _tables(model, torch.arange(seq_len, device=device).unsqueeze(0), seq_len, dtype)


def _tables(
    model: ModelSpec, positions_bs: torch.Tensor, longest: int, dtype: torch.dtype
) -> Mapping[Rope, RotaryTable]:
    mixers = {mixer for run in model.blocks if isinstance(mixer := run.block.mixer, Attention)}
    return {
        mixer.rope: rotary_table(
            mixer.rope, head_dim=mixer.head_dim, positions_bs=positions_bs, length=longest, dtype=dtype
        )
        for mixer in mixers
    }
