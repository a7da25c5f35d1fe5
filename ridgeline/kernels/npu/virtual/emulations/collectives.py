"""Matrix products fused with a collective: the one, then the other, over the group's gloo backend."""

from typing import Any

import torch
from torch import Tensor, distributed
from torch._C._distributed_c10d import _resolve_process_group


def _check(hcom: str, world_size: int | None, unused: dict[str, Any]) -> distributed.ProcessGroup:
    assert not any(value is not None and value != 0 for value in unused.values()), unused
    group = _resolve_process_group(hcom)  # pyright: ignore[reportArgumentType]  its name is a str
    assert world_size in (None, group.size())
    return group


def all_gather_base_mm(
    input: Tensor,
    x2: Tensor,
    hcom: str,
    world_size: int,
    *,
    gather_index: int = 0,
    gather_output: bool = True,
    **unused: Any,
) -> tuple[Tensor, Tensor]:
    """Gathers rows, then multiplies; gives the gathered rows too."""
    group = _check(hcom, world_size, unused)
    assert gather_index == 0
    gathered = input.new_empty(world_size * input.shape[0], input.shape[1])
    distributed.all_gather_into_tensor(gathered, input.contiguous(), group=group)
    return _product(gathered, x2), gathered if gather_output else torch.empty(0, dtype=input.dtype)


def mm_reduce_scatter_base(
    input: Tensor, x2: Tensor, hcom: str, world_size: int, *, reduce_op: str = "sum", **unused: Any
) -> Tensor:
    """Multiplies, then sums over ranks and keeps this rank's rows."""
    group = _check(hcom, world_size, unused)
    assert reduce_op == "sum"
    assert input.shape[0] % world_size == 0
    whole = _product(input, x2)
    part = whole.new_empty(whole.shape[0] // world_size, whole.shape[1])
    distributed.reduce_scatter_tensor(part, whole, group=group)
    return part


def mm_all_reduce_base(x1: Tensor, x2: Tensor, hcom: str, *, reduce_op: str = "sum", **unused: Any) -> Tensor:
    """Multiplies, then sums over ranks."""
    group = _check(hcom, None, unused)
    assert reduce_op == "sum"
    whole = _product(x1, x2)
    distributed.all_reduce(whole, group=group)
    return whole


def _product(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() @ b.double()).to(a.dtype)
