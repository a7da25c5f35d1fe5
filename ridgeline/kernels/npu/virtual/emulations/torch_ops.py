"""Ops with which torch_npu replaces parts of torch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gather_backward(grad: Tensor, input_size: list[int], dim: int, index: Tensor, sparse_grad: bool) -> Tensor:
    """Of torch.gather: gradients added where they came from."""
    return grad.new_zeros(input_size).scatter_add(dim, index, grad)


def matmul_backward(
    grad: Tensor, left: Tensor, right: Tensor, mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of torch.matmul of matrices, whose derivative is an op of its own on an npu; broadcast ones get the sum."""
    of_left = (grad @ right.mT).sum_to_size(left.shape) if mask[0] else None
    of_right = (left.mT @ grad).sum_to_size(right.shape) if mask[1] else None
    return of_left, of_right


def repeat_interleave_backward(grad: Tensor, input: Tensor, repeats: int, dim: int | None = None) -> Tensor:
    """Of torch.repeat_interleave: the sum over the copies of each element."""
    if dim is None:
        return grad.view(-1, repeats).sum(-1).view(input.shape)
    return grad.unflatten(dim, (-1, repeats)).sum(dim % grad.dim() + 1)


def format_cast(input: Tensor, acl_format: int, **unused: int | None) -> Tensor:
    """Of layouts in memory the host knows one."""
    return input


def get_npu_format(input: Tensor) -> int:
    """ND, the plain one."""
    return 2


def dtype_cast(input: Tensor, dtype: torch.dtype) -> Tensor:
    """Of ``Tensor.to``; its backward casts the gradient back."""
    return input.to(dtype, copy=True)
