"""The fake level: shapes, dtypes and autograd of any rank of any world, without numbers or memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensorMode

from ridgeline.kernels.npu.virtual.gaps import mend
from ridgeline.kernels.npu.virtual.load import load_torch_npu


@contextmanager
def fake_npu(*, rank: int = 0, world_size: int = 1) -> Iterator[FakeTensorMode]:
    """A context in which tensors on ``npu`` have everything but values.

    Within it torch.distributed is initialised with ``world_size`` ranks, of which this process is one and the others do
    not exist: collectives return at once, with the shapes they should have.

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
    distributed.init_process_group("cpu:fake,npu:fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            torch.npu.set_device(0)  # pyright: ignore[reportAttributeAccessIssue]  added by torch_npu
            yield mode
    finally:
        distributed.destroy_process_group()
