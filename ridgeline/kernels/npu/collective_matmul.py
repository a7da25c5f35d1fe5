"""A projection and its collective as one kernel of torch_npu ("MC2"), with a backward of our own.

On an Atlas A2 all such kernels of a process must use one communicator.

Legend: ``m`` = rows (tokens), ``k`` = input features, ``n`` = output features; ``w`` = ranks of the group.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_shape, refuse_unless
from ridgeline.kernels.reference.collective_matmul import gathered

WORLD_SIZES = (2, 4, 8)
SUMMED = range(256, 65535)
"""Sizes of the dim that the product sums over."""


def gather_matmul(x_mk: Tensor, weight_nk: Tensor, *, group: ProcessGroup, slices: int = 1) -> Tensor:
    """As `ridgeline.kernels.reference.collective_matmul.gather_matmul`; the kernel slices as it sees fit."""
    _check("gather_matmul", x_mk, weight_nk, group, sums=(weight_nk.shape[1], weight_nk.shape[0]))
    return _GatherMatmul.apply(x_mk, weight_nk, group)


def matmul_scatter(x_mk: Tensor, weight_nk: Tensor, *, group: ProcessGroup, slices: int = 1) -> Tensor:
    """As `ridgeline.kernels.reference.collective_matmul.matmul_scatter`; the kernel slices as it sees fit."""
    _check("matmul_scatter", x_mk, weight_nk, group, sums=(weight_nk.shape[1], weight_nk.shape[0]))
    rows, size = len(x_mk), group.size()
    refuse_unless(rows % size == 0, "matmul_scatter", "m", rows, f"must be a multiple of the group's {size} ranks")
    return _MatmulScatter.apply(x_mk, weight_nk, group)


def matmul_reduce(x_mk: Tensor, weight_nk: Tensor, *, group: ProcessGroup, slices: int = 1) -> Tensor:
    """As `ridgeline.kernels.reference.collective_matmul.matmul_reduce`; the kernel slices as it sees fit."""
    _check("matmul_reduce", x_mk, weight_nk, group, sums=(weight_nk.shape[1],))
    return _MatmulReduce.apply(x_mk, weight_nk, group)


def communicator(group: ProcessGroup) -> str:
    """The name by which a fused kernel finds its communicator: HCCL's, or the group's own over another backend."""
    backend = group._get_backend(torch.device("npu"))
    if hasattr(backend, "get_hccl_comm_name"):
        return backend.get_hccl_comm_name(distributed.get_rank())  # pyright: ignore[reportAttributeAccessIssue]  HCCL's
    return group.group_name


def _check(op: str, x_mk: Tensor, weight_nk: Tensor, group: ProcessGroup, *, sums: tuple[int, ...]) -> None:
    refuse_dtypes(op, x_mk=x_mk, weight_nk=weight_nk)
    refuse_shape(op, "weight_nk", weight_nk, (len(weight_nk), x_mk.shape[-1]))
    refuse_unless(group.size() in WORLD_SIZES, op, "group.size()", group.size(), "must be 2, 4 or 8")
    for size in sums:
        rule = f"each dim that a product sums over must be {SUMMED.start} .. {SUMMED.stop - 1}"
        refuse_unless(size in SUMMED, op, "weight_nk.shape", tuple(weight_nk.shape), rule, "use the kernel 'torch'")


class _GatherMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_mk: Tensor, weight_nk: Tensor, group: ProcessGroup) -> Tensor:
        ctx.save_for_backward(x_mk, weight_nk)
        ctx.group = group
        return torch.ops.npu.npu_all_gather_base_mm(
            x_mk, weight_nk.t(), communicator(group), group.size(), gather_output=False
        )[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_mk, weight_nk = ctx.saved_tensors
        dy = dy.contiguous()
        dx = torch.ops.npu.npu_mm_reduce_scatter_base(dy, weight_nk, communicator(ctx.group), ctx.group.size())
        return dx, dy.t() @ gathered(x_mk, ctx.group), None


class _MatmulScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_mk: Tensor, weight_nk: Tensor, group: ProcessGroup) -> Tensor:
        ctx.save_for_backward(x_mk, weight_nk)
        ctx.group = group
        return torch.ops.npu.npu_mm_reduce_scatter_base(x_mk, weight_nk.t(), communicator(group), group.size())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_mk, weight_nk = ctx.saved_tensors
        dx, whole = torch.ops.npu.npu_all_gather_base_mm(
            dy.contiguous(), weight_nk, communicator(ctx.group), ctx.group.size()
        )
        return dx, whole.t() @ x_mk, None


class _MatmulReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_mk: Tensor, weight_nk: Tensor, group: ProcessGroup) -> Tensor:
        ctx.save_for_backward(x_mk, weight_nk)
        return torch.ops.npu.npu_mm_all_reduce_base(x_mk, weight_nk.t(), communicator(group))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_mk, weight_nk = ctx.saved_tensors
        return dy @ weight_nk, dy.t() @ x_mk, None
