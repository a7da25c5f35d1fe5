"""Matrix products of groups of rows, each with a matrix of its own, in plain torch.

Legend: ``m`` = rows of all groups, ``e`` = groups (experts), ``k`` = the summed dim, ``n`` = output columns.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Later: TypeAlias = Callable[[Sequence[Tensor], Callable[[], Sequence[Tensor]]], bool]
"""Takes weights, and what computes their gradients; False when that is to be done at once."""


def grouped_matmul(
    x_mk: Tensor,
    weights_nk: Sequence[Tensor],
    counts_e: Tensor,
    *,
    grad_sum_enk: Tensor | None = None,
    later: Later | None = None,
) -> Tensor:
    """Multiply the rows of group i, which stand together, by the transpose of matrix i, as a linear layer keeps it.

    Args:
        x_mk: (m, k), float, the groups one after the other.
        weights_nk: (n, k) each, the same dtype, one of every group; they need not lie together.
        counts_e: (e,), int64: rows of each group, >= 0, their sum m.
        grad_sum_enk: (e, n, k) fp32: the backward adds the weights' gradient to it, rounded once, and none flows to
            ``weights_nk``; None lets it flow.
        later: Is offered the weights' gradients by the backward; what it takes flows nowhere.

    Returns:
        (m, n), the same dtype.
    """
    counts = counts_e.tolist()
    if later is not None:
        return _Later.apply(x_mk, counts, later, *weights_nk)  # pyright: ignore[reportReturnType]
    if grad_sum_enk is None:
        parts = zip(x_mk.split(counts), weights_nk, strict=True)
        return torch.cat([functional.linear(rows, weight) for rows, weight in parts])
    return _Accumulating.apply(x_mk, counts, grad_sum_enk, *weights_nk)


class _Accumulating(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_mk: Tensor, counts: list[int], grad_sum_enk: Tensor, *weights_nk: Tensor) -> Tensor:
        ctx.save_for_backward(x_mk, grad_sum_enk, *weights_nk)
        ctx.counts = counts
        return torch.cat([rows @ weight.t() for rows, weight in zip(x_mk.split(counts), weights_nk, strict=True)])

    @staticmethod
    def backward(ctx: Any, dy_mn: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_mk, grad_sum_enk, *weights_nk = ctx.saved_tensors
        dys = dy_mn.split(ctx.counts)
        for total, x, dy in zip(grad_sum_enk, x_mk.split(ctx.counts), dys, strict=True):
            total.addmm_(dy.t().to(total.dtype), x.to(total.dtype))
        dx_mk = torch.cat([dy @ weight for dy, weight in zip(dys, weights_nk, strict=True)])
        return dx_mk, None, None, *(None for _ in weights_nk)


class _Later(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_mk: Tensor, counts: list[int], later: Later, *weights_nk: Tensor) -> Tensor:
        ctx.save_for_backward(x_mk, *weights_nk)
        ctx.counts, ctx.later = counts, later
        parts = zip(x_mk.split(counts), weights_nk, strict=True)
        return torch.cat([functional.linear(rows, weight) for rows, weight in parts])

    @staticmethod
    def backward(ctx: Any, dy_mn: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_mk, *weights_nk = ctx.saved_tensors
        compute = partial(_weight_gradients, x_mk.split(ctx.counts), dy_mn.split(ctx.counts))
        parts = zip(dy_mn.split(ctx.counts), weights_nk, strict=True)
        dx_mk = torch.cat([dy @ weight for dy, weight in parts])
        taken = ctx.later(weights_nk, compute)
        return dx_mk, None, None, *(len(weights_nk) * [None] if taken else compute())


def _weight_gradients(xs_mk: Sequence[Tensor], dys_mn: Sequence[Tensor]) -> list[Tensor]:
    return [dy.t() @ x for x, dy in zip(xs_mk, dys_mn, strict=True)]
