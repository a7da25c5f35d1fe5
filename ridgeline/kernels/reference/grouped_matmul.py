"""Matrix products of groups of rows, each with a matrix of its own, in plain torch.

Legend: ``m`` = rows of all groups, ``e`` = groups (experts), ``k`` = the summed dim, ``n`` = output columns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def grouped_matmul(
    x_mk: Tensor, weights_nk: Sequence[Tensor], counts_e: Tensor, *, grad_sum_enk: Tensor | None = None
) -> Tensor:
    """Multiply the rows of group i, which stand together, by the transpose of matrix i, as a linear layer keeps it.

    Args:
        x_mk: (m, k), float, the groups one after the other.
        weights_nk: (n, k) each, the same dtype, one of every group; they need not lie together.
        counts_e: (e,), int64: rows of each group, >= 0, their sum m.
        grad_sum_enk: (e, n, k) fp32: the backward adds the weights' gradient to it, rounded once, and none flows to
            ``weights_nk``; None lets it flow.

    Returns:
        (m, n), the same dtype.
    """
    counts = counts_e.tolist()
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
