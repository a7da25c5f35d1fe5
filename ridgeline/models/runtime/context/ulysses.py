"""Ulysses: ranks that hold parts of a sequence trade them for parts of the heads, attend, and trade back.

Legend: ``s`` = positions of this rank, ``t`` = those of all ranks of the group, ``b`` = microbatch, ``n`` = heads.

Source:
    DeepSpeed-Ulysses, arXiv 2309.14509, section 3.
"""

from typing import Any

import torch
from torch import distributed

from ridgeline.models.runtime.kernels import Kernel


def exchanging_heads(attention: Kernel, group: distributed.ProcessGroup, *, repeats_kv: bool) -> Kernel:
    """Attention as each rank calls it with its own positions of all heads, over those of all ranks of the group.

    Args:
        attention: Of queries (t, b, n, d), keys and values; gives a context alike.
        group: Its ranks hold the positions one after another.
        repeats_kv: Repeat keys and values for every query head first. So it is done in any case where the group's ranks
            cannot have as many of their heads each.
    """

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        heads, kv_heads = query.shape[2], key.shape[2]
        if repeats_kv or kv_heads % group.size():
            key, value = (x.repeat_interleave(heads // kv_heads, dim=2) for x in (key, value))
        query, key, value = (some_heads(x, group) for x in (query, key, value))
        return all_heads(attention(query, key, value, **options), group)

    return attend


def some_heads(x_sbnd: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
    """Of all heads at this rank's positions, this rank's heads at all positions: (t, b, n/size, d)."""
    return _SomeHeads.apply(x_sbnd, group)  # pyright: ignore[reportReturnType]


def all_heads(x_tbnd: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
    """The way back: (s, b, n, d) of (t, b, n/size, d)."""
    return _AllHeads.apply(x_tbnd, group)  # pyright: ignore[reportReturnType]


class _SomeHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_sbnd: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _to_some_heads(x_sbnd, group)

    @staticmethod
    def backward(ctx: Any, grad_tbnd: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _to_all_heads(grad_tbnd, ctx.group), None


class _AllHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_tbnd: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _to_all_heads(x_tbnd, group)

    @staticmethod
    def backward(ctx: Any, grad_sbnd: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _to_some_heads(grad_sbnd, ctx.group), None


def _to_some_heads(x_sbnd: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
    by_rank = x_sbnd.unflatten(2, (group.size(), -1)).permute(2, 0, 1, 3, 4).contiguous()
    return _traded(by_rank, group).flatten(0, 1)


def _to_all_heads(x_tbnd: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
    by_rank = x_tbnd.contiguous().unflatten(0, (group.size(), -1))
    return _traded(by_rank, group).permute(1, 2, 0, 3, 4).flatten(2, 3)


def _traded(sent: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
    """Of every rank what its tensor, (size, ...), holds for this one, in the order of ranks."""
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent, group=group)
    return received
