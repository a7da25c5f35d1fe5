"""Collectives that stay under way while others compute, in the forward and in the backward alike.

A tensor begins a journey to other ranks, and finishes it where it is needed. The backward meets the two in reverse: the
gradient begins its way back where the tensor had arrived, and finishes it where the tensor had left. So what a forward
does between the two, a backward undoes between them too: of what is ready, autograd takes first what was made last.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import attrs
import torch
from torch import distributed

Travel: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, Any]]
"""Sends a tensor: what will have arrived when the work beside it is done."""

Counts: TypeAlias = Sequence[int] | torch.Tensor | None
"""Rows from or to each rank of a group; None where all are equal."""


@attrs.frozen(eq=False)
class Journey:
    """One tensor's way to other ranks, and its gradient's way back.

    ``under_way`` holds what is sent, what will have arrived and its work; it is empty while nothing travels.
    """

    there: Travel
    back: Travel
    under_way: list[tuple[torch.Tensor, torch.Tensor, Any]] = attrs.field(factory=list, init=False)


def begin(tensor: torch.Tensor, journey: Journey | None) -> torch.Tensor:
    """Send a tensor; what is given back may be read once it is finished. Without a journey it stays."""
    return tensor if journey is None else _Begin.apply(tensor, journey)  # pyright: ignore[reportReturnType]


def finish(tensor: torch.Tensor, journey: Journey | None) -> torch.Tensor:
    """Wait for what was begun."""
    return tensor if journey is None else _Finish.apply(tensor, journey)  # pyright: ignore[reportReturnType]


def exchange(group: distributed.ProcessGroup, *, received: Counts = None, sent: Counts = None) -> Journey | None:
    """An all-to-all of rows, of as many from and to each rank as told, else of equally many."""
    if group.size() == 1:
        return None
    came, went = (None if counts is None else list(map(int, counts)) for counts in (received, sent))
    return Journey(
        partial(_exchange, group=group, received=came, sent=went),
        partial(_exchange, group=group, received=went, sent=came),
    )


def gathering(group: distributed.ProcessGroup) -> Journey | None:
    """All ranks' rows come to each; of their gradients each gets the sum of those of its own."""
    return None if group.size() == 1 else Journey(partial(gather, group=group), partial(_scatter, group=group))


def scattering(group: distributed.ProcessGroup) -> Journey | None:
    """Rows are summed over ranks, each of which gets its share; their gradients come to all."""
    return None if group.size() == 1 else Journey(partial(_scatter, group=group), partial(gather, group=group))


def gather(rows: torch.Tensor, *, group: distributed.ProcessGroup) -> tuple[torch.Tensor, Any]:
    """Begin to gather rows of all ranks, outside of autograd."""
    rows = rows.contiguous()
    output = rows.new_empty(len(rows) * group.size(), *rows.shape[1:])
    return output, distributed.all_gather_into_tensor(output, rows, group=group, async_op=True)


def _scatter(rows: torch.Tensor, *, group: distributed.ProcessGroup) -> tuple[torch.Tensor, Any]:
    rows = rows.contiguous()
    output = rows.new_empty(len(rows) // group.size(), *rows.shape[1:])
    return output, distributed.reduce_scatter_tensor(output, rows, group=group, async_op=True)


def _exchange(
    rows: torch.Tensor, *, group: distributed.ProcessGroup, received: list[int] | None, sent: list[int] | None
) -> tuple[torch.Tensor, Any]:
    rows = rows.contiguous()
    output = rows.new_empty(len(rows) if received is None else sum(received), *rows.shape[1:])
    return output, distributed.all_to_all_single(output, rows, received, sent, group=group, async_op=True)


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, journey: Journey) -> torch.Tensor:
        ctx.journey = journey
        arriving, work = journey.there(tensor)
        journey.under_way.append((tensor, arriving, work))
        return arriving

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        _, arriving, work = ctx.journey.under_way.pop()
        work.wait()
        return arriving, None


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, journey: Journey) -> torch.Tensor:
        ctx.journey = journey
        _, _, work = journey.under_way.pop()
        work.wait()
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient, journey = gradients[0], ctx.journey
        journey.under_way.append((gradient, *journey.back(gradient)))
        return gradient, None  # autograd wants the shape of what came; what left has the other gradient
