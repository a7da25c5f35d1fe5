"""Ops with which torch_npu replaces parts of torch."""

import torch
from torch import Tensor


def gather_backward(grad: Tensor, input_size: list[int], dim: int, index: Tensor, sparse_grad: bool) -> Tensor:
    """Of torch.gather: gradients added where they came from."""
    return grad.new_zeros(input_size).scatter_add(dim, index, grad)


def format_cast(input: Tensor, acl_format: int, **unused: int | None) -> Tensor:
    """Of layouts in memory the host knows one."""
    return input


def get_npu_format(input: Tensor) -> int:
    """ND, the plain one."""
    return 2


def dtype_cast(input: Tensor, dtype: torch.dtype) -> Tensor:
    """Of ``Tensor.to``; its backward casts the gradient back."""
    return input.to(dtype, copy=True)
