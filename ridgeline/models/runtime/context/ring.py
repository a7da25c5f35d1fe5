"""Ring attention: keys and values go round the ranks that hold parts of a sequence, and each attends to all in turn.

A rank holds two parts of a sample, one from either end (`ridgeline.parallel.context`). While it attends to the keys and
values that it has, those of the rank before it are on their way. The backward goes the other way round, beginning with
those that came last, and the sums of their gradients travel behind them until they are home.

Legend: ``s`` = positions of this rank, ``b`` = microbatch, ``n`` = query heads, ``g`` = key-value heads, ``d`` =
head_dim of queries and keys, ``v`` = of values.

Source:
    Ring Attention, arXiv 2310.01889; Ascend/MindSpeed 2.0.0_core_r0.8.0,
    core/context_parallel/ring_context_parallel.py (``AttentionWithCp``).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import distributed

from ridgeline.kernels.masks import CAUSAL, FULL, Band
from ridgeline.models.runtime.context.merge import merge
from ridgeline.models.runtime.kernels import Kernels


class Meeting(NamedTuple):
    """Which of a rank's queries see which of the keys of another, and how."""

    queries: slice
    keys: slice
    mask: Band


def meeting(rank: int, origin: int, *, size: int) -> Meeting:
    """How the queries of a rank meet the keys of the rank ``origin``, each of ``size`` positions in two equal parts.

    Of an earlier rank the first part lies before both of ours and the second behind them; of a later rank both lie
    before our second part. So every meeting but that with itself takes the same time.
    """
    if origin == rank:
        return Meeting(slice(None), slice(None), CAUSAL)
    if origin < rank:
        return Meeting(slice(None), slice(0, size // 2), FULL)
    return Meeting(slice(size // 2, None), slice(None), FULL)


def ring_attention(
    query_sbnd: torch.Tensor,
    key_sbgd: torch.Tensor,
    value_sbgv: torch.Tensor,
    *,
    scale: float,
    kernels: Kernels,
    group: distributed.ProcessGroup,
) -> torch.Tensor:
    """The context (s, b, n, v) of this rank's queries over the keys of all ranks of the group, causal."""
    return _Ring.apply(query_sbnd, key_sbgd, value_sbgv, scale, kernels, group)  # pyright: ignore[reportReturnType]


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  the arguments of `ring_attention`
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        kernels: Kernels,
        group: distributed.ProcessGroup,
    ) -> torch.Tensor:
        size, rank, shapes = group.size(), group.rank(), (key.shape, value.shape)
        held = torch.cat((key.flatten(), value.flatten()))
        context, lse = torch.empty(0), torch.empty(0)
        for step in range(size):
            coming = _pass_on(held, group, 1) if step + 1 < size else None
            queries, keys, mask = meeting(rank, (rank - step) % size, size=len(query))
            k, v = (x[keys] for x in _parted(held, shapes))
            part, part_lse = kernels["partial_attention"](query[queries], k, v, scale=scale, mask=mask)
            if step == 0:
                context, lse = part.to(part_lse.dtype), part_lse
            else:
                merge(context[queries], lse[..., queries], part, part_lse)
            held = coming.received() if coming else held
        context = context.to(query.dtype)
        ctx.save_for_backward(query, held, context, lse)
        ctx.shapes, ctx.scale, ctx.kernels, ctx.group = shapes, scale, kernels, group
        return context

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, held, context, lse = ctx.saved_tensors
        group, shapes = ctx.group, ctx.shapes
        size, rank = group.size(), group.rank()
        dquery = torch.zeros_like(query, dtype=lse.dtype)
        dheld, sums = torch.empty(0), None
        for step in range(size):
            coming = _pass_on(held, group, -1) if step + 1 < size else None
            queries, keys, mask = meeting(rank, (rank + 1 + step) % size, size=len(query))
            k, v = (x[keys] for x in _parted(held, shapes))
            rows = grad[queries], query[queries], k, v, context[queries], lse[..., queries]
            dq, *dkv = ctx.kernels["partial_attention_grad"](*rows, scale=ctx.scale, mask=mask)
            dquery[queries] += dq
            dheld = sums.received().to(lse.dtype) if sums else torch.zeros_like(held, dtype=lse.dtype)
            for total, part in zip(_parted(dheld, shapes), dkv, strict=True):
                total[keys] += part
            if coming:
                sums = _pass_on(dheld.to(held.dtype), group, -1)
                held = coming.received()
        dkey, dvalue = _parted(dheld.to(held.dtype), shapes)
        return dquery.to(query.dtype), dkey, dvalue, None, None, None


class _Exchange(NamedTuple):
    """A tensor on its way to a neighbour in the ring, while one like it comes from the other."""

    sent: torch.Tensor
    arriving: torch.Tensor
    works: Sequence[distributed.Work]

    def received(self) -> torch.Tensor:
        """What came, once it is there."""
        for work in self.works:
            work.wait()
        return self.arriving


def _pass_on(sent: torch.Tensor, group: distributed.ProcessGroup, way: int) -> _Exchange:
    """Send a tensor to the next rank (``way`` = 1) or to the one before (-1), without waiting.

    Where a device carries out calls one after another, ranks that all send first would wait for ever: every other one
    receives first.
    """
    size, rank = group.size(), group.rank()
    arriving = torch.empty_like(sent)
    send = partial(distributed.isend, sent, group=group, group_dst=(rank + way) % size)
    receive = partial(distributed.irecv, arriving, group=group, group_src=(rank - way) % size)
    works = [call() for call in ((receive, send) if rank % 2 else (send, receive))]
    return _Exchange(sent, arriving, [work for work in works if work is not None])


def _parted(flat: torch.Tensor, shapes: Sequence[torch.Size]) -> list[torch.Tensor]:
    """Tensors of these shapes that lie one after the other."""
    return [
        part.view(shape) for part, shape in zip(flat.split([shape.numel() for shape in shapes]), shapes, strict=True)
    ]
