"""Matrix products of groups of rows, each with a matrix of its own, in plain torch.

Legend: ``m`` = rows of all groups, ``e`` = groups (experts), ``k`` = the summed dim, ``n`` = output columns.
"""

from typing import Any

import torch
from torch import Tensor


def grouped_matmul(x_mk: Tensor, weight_ekn: Tensor, counts_e: Tensor, *, grad_sum_ekn: Tensor | None = None) -> Tensor:
    """Multiply the rows of group i, which stand together, by matrix i.

    Args:
        x_mk: (m, k), float, the groups one after the other.
        weight_ekn: (e, k, n), the same dtype.
        counts_e: (e,), int64: rows of each group, >= 0, their sum m.
        grad_sum_ekn: (e, k, n) fp32: the backward adds the weights' gradient to it, rounded once, and none flows to
            ``weight_ekn``; None lets it flow.

    Returns:
        (m, n), the same dtype.
    """
    if grad_sum_ekn is None:
        return _by_group(x_mk, weight_ekn, counts_e.tolist())
    return _Accumulating.apply(x_mk, weight_ekn, counts_e, grad_sum_ekn)


def _by_group(x_mk: Tensor, weight_ekn: Tensor, counts: list[int]) -> Tensor:
    return torch.cat([rows @ matrix for rows, matrix in zip(x_mk.split(counts), weight_ekn, strict=True)])


class _Accumulating(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_mk: Tensor, weight_ekn: Tensor, counts_e: Tensor, grad_sum_ekn: Tensor) -> Tensor:
        ctx.save_for_backward(x_mk, weight_ekn, grad_sum_ekn)
        ctx.counts = counts_e.tolist()
        return _by_group(x_mk, weight_ekn, ctx.counts)

    @staticmethod
    def backward(ctx: Any, dy_mn: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_mk, weight_ekn, grad_sum_ekn = ctx.saved_tensors
        for total, x, dy in zip(grad_sum_ekn, x_mk.split(ctx.counts), dy_mn.split(ctx.counts), strict=True):
            total.addmm_(x.t().to(total.dtype), dy.to(total.dtype))
        return _by_group(dy_mn, weight_ekn.transpose(1, 2), ctx.counts), None, None, None
