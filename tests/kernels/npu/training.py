"""Training steps of small models on the emulated npu, as ranks run them."""

from typing import Any

import attrs
from torch import distributed

from ridgeline.core.job import Job
from ridgeline.kernels.device import open_device
from ridgeline.kernels.npu.virtual.emulate import emulated_npu
from ridgeline.models.program import lower
from ridgeline.models.runtime.build import build
from ridgeline.models.runtime.step import train_step
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.plan import plan
from tests.parity.on_ranks import microbatches


def on_npu(job: Job) -> Job:
    """The same job for the chips of an Atlas."""
    cluster = cluster_preset("atlas-800t-a2", devices_per_node=job.cluster.world_size)
    return attrs.evolve(job, cluster=cluster)


def train(job: Job, steps: int) -> dict[str, Any]:
    """Losses and gradient norms of a few steps on the emulated npu, and the ops of torch_npu that ran."""
    executed: set[str] = set()
    with emulated_npu(executed=executed):
        program = lower(plan(job), distributed.get_rank())
        with build(program, open_device("npu"), local_rank=0) as built:  # each process has its own npu
            done = [train_step(built, microbatches(built, step), step=step) for step in range(steps)]
    losses, norms = [each.loss for each in done], [each.grad_norm for each in done]
    return {"losses": losses, "norms": norms, "executed": executed}
