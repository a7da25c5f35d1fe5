"""A rank's program as live objects: model chunks, optimizer, process groups."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import attrs
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.transformer.transformer_config import TransformerConfig

from ridgeline.kernels.device import Device
from ridgeline.kernels.runtime.load import kernels_here
from ridgeline.models.program import RankProgram
from ridgeline.models.runtime.deferring import let_wait
from ridgeline.models.runtime.model import build_chunks, build_config, in_precision, initialize, mark, resolved
from ridgeline.models.runtime.rope import RotaryTable
from ridgeline.models.runtime.sequences import Turn, tables_of
from ridgeline.parallel.runtime.gradients import ParallelChunk, wrap_chunks
from ridgeline.parallel.runtime.groups import process_groups
from ridgeline.parallel.runtime.optimizer import build_optimizer


@attrs.frozen(kw_only=True, eq=False)
class Built:
    """What `train_step` needs of one rank.

    Attributes:
        program: What it was built from.
        chunks: Model chunks, each wrapped for data parallelism (and in bf16 for precision).
        optimizer: Over all of them.
        config: Megatron-core's, shared by all modules.
        tables: Rotary tables of samples that are one document each.
        device: Where the tensors are.
    """

    program: RankProgram
    chunks: list[ParallelChunk]
    optimizer: ChainedOptimizer
    config: TransformerConfig
    tables: Mapping[Turn, RotaryTable]
    device: torch.device

    @property
    def by_stage(self) -> dict[int, ParallelChunk]:
        """Each chunk by its stage."""
        return {part.stage: chunk for part, chunk in zip(self.program.chunks, self.chunks, strict=True)}


@contextmanager
def build(program: RankProgram, device: Device, *, local_rank: int = 0) -> Iterator[Built]:
    """Build a rank's model and optimizer with their initial values; on leaving, its process groups are gone.

    torch.distributed must be initialised with the plan's number of ranks.

    Args:
        program: Of this rank.
        device: Where to build; its bridge is entered for as long as the context lasts.
        local_rank: The rank's device on its node.

    Raises:
        LoweringError: Another number of ranks was started, or a kernel does not exist on this device.
    """
    job = program.job
    target = device.torch_device(local_rank)
    kernels = kernels_here(program.kernels, device.capabilities.name, policy=job.run.kernels)
    with device.bridge(), process_groups(job.layout, world_size=job.cluster.world_size, seed=job.run.seed):
        config = build_config(program)
        with target:
            bare = build_chunks(program, config, kernels)
        initialize(program, bare)
        mark(program, bare)
        ddp = DistributedDataParallelConfig(**resolved(program.ddp))
        chunks = wrap_chunks([in_precision(config, chunk) for chunk in bare], config, ddp)
        if any(action.kind == "W" for action in program.actions) or "weight_gradients" in job.comm.moe_overlap:
            for chunk in chunks:
                let_wait(chunk, chunk.deferred)
        optimizer = build_optimizer(chunks, resolved(program.optimizer))
        tables = tables_of(
            job.model,
            seq_len=job.batch.seq_len,
            pieces=program.data.pieces,
            device=target,
            dtype=config.params_dtype,
        )
        try:
            yield Built(
                program=program, chunks=chunks, optimizer=optimizer, config=config, tables=tables, device=target
            )
        finally:
            for chunk in chunks:
                release(chunk)


def release(chunk: DistributedDataParallel) -> None:
    """Part a chunk from its modules, so that both can go.

    Megatron-core's token dispatcher keeps its last microbatch, whose graph keeps the hooks of gradients, which keep the
    chunk: a cycle through autograd that Python cannot see. It would hold the model, and the threads of its groups.
    """
    chunk._modules.clear()
