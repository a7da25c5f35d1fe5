"""Matrix products of groups of rows on torch_npu, with a backward of our own.

Legend: ``m`` = rows of all groups, ``e`` = groups (experts), ``k`` = the summed dim, ``n`` = output columns.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_shape, refuse_unless

MAX_DIM = 65535
MAX_GROUPS = 128
_ONE_OUTPUT = 3
_ROWS, _SUMMED = 0, 2
"""What is grouped: the rows of the product, or the dim that is summed over (for the weights' gradient)."""
_COUNTS = 1
_ENDS = 0

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
    """As `ridgeline.kernels.reference.grouped_matmul.grouped_matmul`; k and n up to 65535, 2 to 128 groups.

    Source:
        The documentation inside the torch_npu 2.13.0 wheel, ``npu_grouped_matmul``: one tensor of rows and a list of
        matrices.
    """
    op = "grouped_matmul"
    groups = len(weights_nk)
    refuse_unless(
        2 <= groups <= MAX_GROUPS, op, "groups", groups, f"must be 2 .. {MAX_GROUPS}", "use the kernel 'torch'"
    )
    refuse_dtypes(op, x_mk=x_mk, weight_nk=weights_nk[0])
    for dim, size in zip("nk", weights_nk[0].shape, strict=True):
        refuse_unless(size <= MAX_DIM, op, dim, size, f"must be <= {MAX_DIM}", "split it over etp")
    refuse_dtypes(op, allowed=(torch.int64,), counts_e=counts_e)
    refuse_shape(op, "counts_e", counts_e, (groups,))
    refuse_shape(op, "x_mk", x_mk, (len(x_mk), weights_nk[0].shape[-1]))
    if grad_sum_enk is not None:
        refuse_dtypes(op, allowed=(torch.float32,), grad_sum_enk=grad_sum_enk)
        refuse_shape(op, "grad_sum_enk", grad_sum_enk, (groups, *weights_nk[0].shape))
    return _GroupedMatmul.apply(x_mk, counts_e.to(x_mk.device), grad_sum_enk, later, *weights_nk)


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_mk: Tensor,
        counts_e: Tensor,
        grad_sum_enk: Tensor | None,
        later: Later | None,
        *weights_nk: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x_mk, counts_e, grad_sum_enk, *weights_nk)
        ctx.later = later
        # Transposed operands are views: the kernel reads them by their strides.
        return _multiply(x_mk, _matrices([weight.t() for weight in weights_nk]), counts_e, grouped=_ROWS)

    @staticmethod
    def backward(ctx: Any, dy_mn: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_mk, counts_e, grad_sum_enk, *weights_nk = ctx.saved_tensors
        dy_mn = dy_mn.contiguous()
        dx_mk = _multiply(dy_mn, _matrices(weights_nk), counts_e, grouped=_ROWS)
        if grad_sum_enk is None and not any(ctx.needs_input_grad[3:]):  # frozen
            return dx_mk, None, None, *(None for _ in weights_nk)
        if grad_sum_enk is None:
            compute = partial(_multiply, dy_mn.t(), [x_mk], counts_e, grouped=_SUMMED)
            taken = ctx.later is not None and ctx.later(weights_nk, compute)
            return dx_mk, None, None, None, *(len(weights_nk) * [None] if taken else compute())
        torch.ops.npu.npu_grouped_matmul_add_(
            grad_sum_enk,
            dy_mn,
            x_mk,
            counts_e.cumsum(0),
            transpose_x=True,
            transpose_weight=False,
            group_type=_SUMMED,
            group_list_type=_ENDS,
        )
        return dx_mk, None, None, None, *(None for _ in weights_nk)


def _matrices(each: list[Tensor]) -> list[Tensor]:
    """A list for half precision; in fp32 the kernel takes them as one tensor only."""
    return [torch.stack(each)] if each[0].dtype == torch.float32 else each


def _multiply(left: Tensor, right: list[Tensor], counts_e: Tensor, *, grouped: int) -> Tensor:
    return torch.ops.npu.npu_grouped_matmul(
        [left], right, group_list=counts_e, split_item=_ONE_OUTPUT, group_type=grouped, group_list_type=_COUNTS
    )[0]
