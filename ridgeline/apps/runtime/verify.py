"""One rank of any world, built by Megatron-core without devices or neighbours, and compared with the plan."""

import sys

import attrs
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from ridgeline.core.errors import Problem, SpecError
from ridgeline.kernels.device import open_device
from ridgeline.kernels.runtime.load import load_kernel
from ridgeline.models.program import RankProgram, lower
from ridgeline.models.runtime.model import build_chunk, build_config
from ridgeline.parallel.plan import Plan, kernels_of
from ridgeline.parallel.runtime.groups import process_groups


@attrs.frozen(kw_only=True)
class Verified:
    """What a rank holds by the plan and as Megatron-core builds it: name to shape, chunk by chunk.

    Attributes:
        planned, built: ``chunk 0: decoder.layers.0...`` and its shape on this rank.
    """

    planned: dict[str, tuple[int, ...]]
    built: dict[str, tuple[int, ...]]

    def differences(self) -> list[str]:
        """A line for each parameter that is not as planned."""
        return [
            f"{name}: planned {self.planned.get(name, 'nothing')}, built {self.built.get(name, 'nothing')}"
            for name in dict.fromkeys((*self.planned, *self.built))
            if self.planned.get(name) != self.built.get(name)
        ]


def verify_rank(plan: Plan, rank: int) -> int:
    """Build a rank and tell whether every parameter is as planned; the exit code."""
    world_size = plan.mesh.world_size
    if not 0 <= rank < world_size:
        raise SpecError(Problem("--verify-rank", rank, f"must be 0 .. {world_size - 1}, the ranks of the job"))
    program = lower(plan, rank)
    verified = Verified(planned=_planned(program), built=build_without_devices(plan, program))
    differences = verified.differences()
    elements = sum(torch.Size(shape).numel() for shape in verified.built.values())
    sys.stdout.write(
        f"rank {rank} of {world_size}, {program.coords}: {len(verified.built)} parameters, {elements:,} elements; "
        f"{f'{len(differences)} are' if differences else 'all names and shapes'} "
        f"{'not ' if differences else ''}as planned\n"
    )
    sys.stdout.writelines(f"{line}\n" for line in differences)
    return 1 if differences else 0


def build_without_devices(plan: Plan, program: RankProgram) -> dict[str, tuple[int, ...]]:
    """The parameters that Megatron-core gives this rank, through torch's fake process group and meta tensors.

    Only one may be built at a time, and none in a process that is part of a real group.
    """
    job = program.job
    on_cpu = attrs.evolve(job, cluster=attrs.evolve(job.cluster, chip=attrs.evolve(job.cluster.chip, device="cpu")))
    kernels = {choice.op: load_kernel(choice.op, choice.kernel) for choice in kernels_of(on_cpu)}
    distributed.init_process_group("fake", store=FakeStore(), rank=program.rank, world_size=plan.mesh.world_size)
    try:
        device = open_device("cpu")
        with device.bridge(), process_groups(job.layout, world_size=plan.mesh.world_size, seed=job.run.seed):
            config = build_config(program)
            with torch.device("meta"):
                chunks = [build_chunk(program, chunk, config, kernels) for chunk in range(len(program.chunks))]
            return {
                f"chunk {chunk}: {name}": tuple(tensor.shape)
                for chunk, module in enumerate(chunks)
                for name, tensor in module.named_parameters()
            }
    finally:
        distributed.destroy_process_group()


def _planned(program: RankProgram) -> dict[str, tuple[int, ...]]:
    return {f"chunk {owned.local.chunk}: {owned.local.name}": owned.local.local_shape for owned in program.params}
