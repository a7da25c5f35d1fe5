"""Matrix products of groups of rows on torch_npu, with a backward of our own.

Legend: ``m`` = rows of all groups, ``e`` = groups (experts), ``k`` = the summed dim, ``n`` = output columns.
"""

from typing import Any

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_unless

MAX_DIM = 65535
_ONE_OUTPUT = 3
_ROWS, _SUMMED = 0, 2
"""What is grouped: the rows of the product, or the dim that is summed over (for the weights' gradient)."""
_COUNTS = 1
_ENDS = 0


def grouped_matmul(x_mk: Tensor, weight_ekn: Tensor, counts_e: Tensor, *, grad_sum_ekn: Tensor | None = None) -> Tensor:
    """As `ridgeline.kernels.reference.grouped_matmul.grouped_matmul`; k and n up to 65535."""
    refuse_dtypes("grouped_matmul", x_mk=x_mk, weight_ekn=weight_ekn)
    for dim, size in zip("kn", weight_ekn.shape[1:], strict=True):
        refuse_unless(size <= MAX_DIM, "grouped_matmul", dim, size, f"must be <= {MAX_DIM}", "split it over etp")
    refuse_unless(
        counts_e.dtype == torch.int64, "grouped_matmul", "counts_e.dtype", counts_e.dtype, "must be torch.int64"
    )
    return _GroupedMatmul.apply(x_mk, weight_ekn, counts_e.to(x_mk.device), grad_sum_ekn)


def _multiply(left: Tensor, right: Tensor, counts_e: Tensor, *, grouped: int) -> Tensor:
    return torch.ops.npu.npu_grouped_matmul(
        [left], [right], group_list=counts_e, split_item=_ONE_OUTPUT, group_type=grouped, group_list_type=_COUNTS
    )[0]


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_mk: Tensor, weight_ekn: Tensor, counts_e: Tensor, grad_sum_ekn: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_mk, weight_ekn, counts_e, grad_sum_ekn)
        return _multiply(x_mk, weight_ekn, counts_e, grouped=_ROWS)

    @staticmethod
    def backward(ctx: Any, dy_mn: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_mk, weight_ekn, counts_e, grad_sum_ekn = ctx.saved_tensors
        dy_mn = dy_mn.contiguous()
        # Transposed operands are views: the kernel reads them by their strides.
        dx_mk = _multiply(dy_mn, weight_ekn.transpose(1, 2), counts_e, grouped=_ROWS)
        if grad_sum_ekn is None:
            return dx_mk, _multiply(x_mk.t(), dy_mn, counts_e, grouped=_SUMMED), None, None
        torch.ops.npu.npu_grouped_matmul_add_(
            grad_sum_ekn,
            x_mk,
            dy_mn,
            counts_e.cumsum(0),
            transpose_x=True,
            transpose_weight=False,
            group_type=_SUMMED,
            group_list_type=_ENDS,
        )
        return dx_mk, None, None, None
