"""The fake level: shapes, dtypes and autograd of any rank of any world, without numbers or memory."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensorMode

from ridgeline.kernels.device.bridge import assigned
from ridgeline.kernels.npu.template import template
from ridgeline.kernels.npu.virtual.gaps import mend
from ridgeline.kernels.npu.virtual.load import load_torch_npu


@contextmanager
def fake_npu(*, rank: int = 0, world_size: int = 1) -> Iterator[FakeTensorMode]:
    """A context in which tensors on ``npu`` have everything but values.

    Within it torch.distributed is initialised with ``world_size`` ranks, of which this process is one and the others do
    not exist: collectives return at once, with the shapes they should have. Objects gathered from all ranks are as many
    times this rank's own.

    Args:
        rank: 0 <= rank < world_size.
        world_size: Ranks of the job; thousands cost no more than one.

    Raises:
        LoweringError: The virtual NPU cannot be made here.
        RuntimeError: torch.distributed is initialised already.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore  # it registers the backend

    load_torch_npu()
    mend()
    _register_coalesced()
    distributed.init_process_group("cpu:fake,npu:fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, assigned(_STAND_INS):
            torch.npu.set_device(0)  # pyright: ignore[reportAttributeAccessIssue]  added by torch_npu
            template.cache_clear()
            yield mode
    finally:
        template.cache_clear()  # a fake tensor is none outside its mode
        distributed.destroy_process_group()


def _all_gather_object(object_list: list[Any], obj: Any, group: Any = None) -> None:
    """What every rank holds, if all hold the same.

    torch's own pickles into a storage, which keeps no byte under fake tensors, and reads it back.
    """
    object_list[:] = [obj] * len(object_list)


def _convert_in_place(parameter: torch.Tensor, converted: torch.Tensor) -> None:
    """Give a parameter other data, as modules do with real ones when they are converted.

    Of a fake one torch would put another tensor in its place, without the marks that Megatron-core set on it.
    """
    parameter.data = converted.data


_STAND_INS = (
    ("torch.distributed:all_gather_object", _all_gather_object),
    ("torch.utils:swap_tensors", _convert_in_place),
)
"""Functions of torch, and what does the same for fake tensors."""


@functools.cache
def _register_coalesced() -> torch.library.Library:
    """Collectives of several tensors at once: torch has fakes of all others."""
    from torch._C._distributed_c10d import FakeWork

    library = torch.library.Library("c10d", "IMPL", "Meta")
    for name in ("allreduce_coalesced_", "allgather_into_tensor_coalesced_", "reduce_scatter_tensor_coalesced_"):
        library.impl(name, lambda *args, **kwargs: FakeWork().boxed())
    return library
