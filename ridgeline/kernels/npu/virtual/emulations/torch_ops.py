"""Ops with which torch_npu replaces parts of torch."""

from torch import Tensor


def gather_backward(grad: Tensor, input_size: list[int], dim: int, index: Tensor, sparse_grad: bool) -> Tensor:
    """Of torch.gather: gradients added where they came from."""
    return grad.new_zeros(input_size).scatter_add(dim, index, grad)
