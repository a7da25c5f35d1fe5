"""Running a case: its kernel on npu tensors, its reference on the host, and all that came out of each."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ridgeline.kernels.runtime.load import load_kernel
from tests.kernels.npu.cases import Case

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments_of(case: Case) -> Arguments:
    """The case's arguments, the same each time."""
    torch.manual_seed(0)
    return case.args(), case.kwargs()


def moved(arguments: Arguments, change: Callable[[Tensor], Tensor]) -> Arguments:
    """The arguments with every tensor changed; leaves stay leaves."""
    leaves, spec = tree_flatten(arguments)
    host = arguments[1].get("cu_seqlens")  # which stays where it is
    changed = [_moved(x, change) if isinstance(x, Tensor) and x is not host else x for x in leaves]
    return tree_unflatten(changed, spec)


def _moved(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(tensor.detach()).clone().requires_grad_(tensor.requires_grad)


def everything(case: Case, kernel: str, arguments: Arguments) -> list[Tensor]:
    """Outputs, what the call changed, and the gradients of all leaves, for gradients of the outputs that count up."""
    args, kwargs = arguments
    outputs = [
        output
        for output in tree_flatten(load_kernel(case.op, kernel)(*args, **kwargs))[0]
        if isinstance(output, Tensor)
    ]
    _backward([output for output in outputs if output.requires_grad])
    sums = [kwargs[name] for name in ("grad_sum_enk",) if name in kwargs]
    unmoved = args[1] if sums else ()
    leaves = [leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, Tensor) and leaf.requires_grad]
    gradients = [leaf.grad for leaf in leaves if not any(leaf is weight for weight in unmoved)]
    assert all(gradient is not None for gradient in gradients), "a leaf got no gradient"
    return [*outputs, *(args[place] for place in case.changed), *sums, *gradients]  # pyright: ignore[reportReturnType]  none is None


def _backward(outputs: Sequence[Tensor]) -> None:
    if outputs:
        torch.autograd.backward(outputs, [_counting(output) for output in outputs])


def _counting(output: Tensor) -> Tensor:
    """A gradient that is alike nowhere; zero where the output is not finite."""
    values = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype).to(output.device)
    return values.where(output.detach().isfinite(), torch.zeros_like(values))
