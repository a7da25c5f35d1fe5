"""One rank of any world, built by Megatron-core without devices or neighbours, and compared with its program."""

import time
from collections.abc import Iterator

import attrs
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.device import open_device
from ridgeline.kernels.runtime.load import load_kernel
from ridgeline.models.program import RankProgram
from ridgeline.models.runtime.model import build_chunks, build_config
from ridgeline.parallel.runtime.groups import process_groups


@attrs.frozen(kw_only=True)
class Verified:
    """A rank as its program has it and as Megatron-core builds it: ``chunk 0: decoder...`` to its local shape."""

    program: RankProgram
    planned: dict[str, tuple[int, ...]]
    built: dict[str, tuple[int, ...]]
    seconds: float

    @property
    def differences(self) -> tuple[str, ...]:
        """A line for each parameter that is not as planned."""
        return tuple(
            f"{name}: planned {self.planned.get(name, 'nothing')}, built {self.built.get(name, 'nothing')}"
            for name in dict.fromkeys((*self.planned, *self.built))
            if self.planned.get(name) != self.built.get(name)
        )

    @property
    def elements(self) -> int:
        """Elements of all parameters that were built."""
        return sum(torch.Size(shape).numel() for shape in self.built.values())


def verify_rank(program: RankProgram) -> Verified:
    """Build a rank through torch's fake process group on meta tensors, and tell its parameters beside the planned ones.

    Nothing is computed and nothing sent, so that a laptop verifies a rank of thousands in seconds.

    Args:
        program: Of that rank, whatever device it is for.

    Raises:
        LoweringError: This process is part of a real group.
    """
    began = time.perf_counter()
    planned = {f"chunk {p.local.chunk}: {p.local.name}": p.local.local_shape for p in program.params}
    built = _built(program)
    return Verified(program=program, planned=planned, built=built, seconds=time.perf_counter() - began)


def _built(program: RankProgram) -> dict[str, tuple[int, ...]]:
    job, world_size = program.job, program.job.cluster.world_size
    if distributed.is_initialized():
        raise LoweringError(
            "torch.distributed is initialised: a rank is verified in a process that is part of no group"
        )
    kernels = {op: load_kernel(op, "torch") for op, _ in program.kernels}  # shapes do not depend on kernels
    distributed.init_process_group("fake", store=FakeStore(), rank=program.rank, world_size=world_size)
    try:
        with open_device("cpu").bridge(), process_groups(job.layout, world_size=world_size, seed=job.run.seed):
            # Memory comes from torch's default device under this option, not from the one that Megatron-core names.
            config = build_config(program, use_cpu_initialization=True)
            with torch.device("meta"):
                chunks = build_chunks(program, config, kernels)
            return {
                f"chunk {chunk}: {name}": tuple(tensor.shape)
                for chunk, module in enumerate(chunks)
                for name, tensor in (*module.named_parameters(), *_moved_by_load(module))
            }
    finally:
        distributed.destroy_process_group()


def _moved_by_load(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters that are buffers in Megatron-core, since no gradient moves them."""
    return ((name, tensor) for name, tensor in module.named_buffers() if name.endswith(".expert_bias"))
