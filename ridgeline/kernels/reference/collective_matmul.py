"""A projection and the collective of tensor parallelism beside it, in plain torch.

With ``slices`` > 1 the rows go in slices, and the collective of one runs while the next is multiplied.

Legend: ``m`` = rows (tokens), ``k`` = input features, ``n`` = output features; ``w`` = ranks of the group.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup


def gather_matmul(x_mk: Tensor, weight_nk: Tensor, *, group: ProcessGroup, slices: int = 1) -> Tensor:
    """Gather the rows of all ranks, in their order, and project them: a column-parallel layer under sp.

    Args:
        x_mk: (m, k), float; this rank's rows.
        weight_nk: (n, k), the same dtype.
        group: The ranks.
        slices: Divides m.

    Returns:
        (w*m, n).
    """
    return _GatherMatmul.apply(x_mk, weight_nk, group, slices)


def matmul_scatter(x_mk: Tensor, weight_nk: Tensor, *, group: ProcessGroup, slices: int = 1) -> Tensor:
    """Project, sum over ranks, and keep this rank's rows: a row-parallel layer under sp.

    Args:
        x_mk: (m, k), float; w divides m.
        weight_nk: (n, k), the same dtype.
        group: The ranks.
        slices: Divides m/w.

    Returns:
        (m/w, n).
    """
    return _MatmulScatter.apply(x_mk, weight_nk, group, slices)


def matmul_reduce(x_mk: Tensor, weight_nk: Tensor, *, group: ProcessGroup, slices: int = 1) -> Tensor:
    """Project and sum over ranks: a row-parallel layer without sp.

    Args:
        x_mk: (m, k), float.
        weight_nk: (n, k), the same dtype.
        group: The ranks.
        slices: Divides m.

    Returns:
        (m, n), the same on all ranks.
    """
    return _MatmulReduce.apply(x_mk, weight_nk, group, slices)


def gathered(x_mk: Tensor, group: ProcessGroup) -> Tensor:
    """The rows of all ranks, (w*m, k)."""
    out = x_mk.new_empty(group.size() * x_mk.shape[0], *x_mk.shape[1:])
    distributed.all_gather_into_tensor(out, x_mk.contiguous(), group=group)
    return out


def _gather_then(x_mk: Tensor, matrix_kn: Tensor, group: ProcessGroup, slices: int) -> Tensor:
    parts = [part.contiguous() for part in x_mk.chunk(slices)]
    buffers = [part.new_empty(group.size() * part.shape[0], part.shape[1]) for part in parts]
    out_wmn = x_mk.new_empty(group.size(), x_mk.shape[0], matrix_kn.shape[1])
    works = [
        distributed.all_gather_into_tensor(buffer, part, group=group, async_op=True)
        for buffer, part in zip(buffers, parts, strict=True)
    ]
    for work, buffer, out in zip(works, buffers, out_wmn.chunk(slices, dim=1), strict=True):
        assert work is not None
        work.wait()
        out.copy_((buffer @ matrix_kn).view(out.shape))
    return out_wmn.flatten(0, 1)


def _then_scatter(x_mk: Tensor, matrix_kn: Tensor, group: ProcessGroup, slices: int) -> Tensor:
    out_mn = x_mk.new_empty(x_mk.shape[0] // group.size(), matrix_kn.shape[1])
    works = []
    for part, out in zip(x_mk.unflatten(0, (group.size(), -1)).chunk(slices, dim=1), out_mn.chunk(slices), strict=True):
        product = part.flatten(0, 1) @ matrix_kn
        works.append((distributed.reduce_scatter_tensor(out, product, group=group, async_op=True), product))
    for work, _ in works:  # the products live until they are sent
        assert work is not None
        work.wait()
    return out_mn


class _GatherMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_mk: Tensor, weight_nk: Tensor, group: ProcessGroup, slices: int) -> Tensor:
        ctx.save_for_backward(x_mk, weight_nk)
        ctx.group, ctx.slices = group, slices
        return _gather_then(x_mk, weight_nk.t(), group, slices)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_mk, weight_nk = ctx.saved_tensors
        dx = _then_scatter(dy, weight_nk, ctx.group, ctx.slices)
        return dx, dy.t() @ gathered(x_mk, ctx.group), None, None


class _MatmulScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_mk: Tensor, weight_nk: Tensor, group: ProcessGroup, slices: int) -> Tensor:
        ctx.save_for_backward(x_mk, weight_nk)
        ctx.group, ctx.slices = group, slices
        return _then_scatter(x_mk, weight_nk.t(), group, slices)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_mk, weight_nk = ctx.saved_tensors
        whole = gathered(dy, ctx.group)
        return whole @ weight_nk, whole.t() @ x_mk, None, None


class _MatmulReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_mk: Tensor, weight_nk: Tensor, group: ProcessGroup, slices: int) -> Tensor:
        ctx.save_for_backward(x_mk, weight_nk)
        out_mn = x_mk.new_empty(x_mk.shape[0], weight_nk.shape[0])
        works = []
        for part, out in zip(x_mk.chunk(slices), out_mn.chunk(slices), strict=True):
            torch.mm(part, weight_nk.t(), out=out)
            works.append(distributed.all_reduce(out, group=group, async_op=True))
        for work in works:
            work.wait()
        return out_mn

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_mk, weight_nk = ctx.saved_tensors
        return dy @ weight_nk, dy.t() @ x_mk, None, None
