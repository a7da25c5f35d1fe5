"""Training steps of small models on the emulated npu, as ranks run them."""

import attrs

from ridgeline.core.job import Job
from ridgeline.kernels.npu.virtual.emulate import emulated_npu
from ridgeline.parallel.clusters import cluster_preset
from tests.parity import on_ranks


def on_npu(job: Job) -> Job:
    """The same job for the chips of an Atlas."""
    cluster = cluster_preset("atlas-800t-a2", devices_per_node=job.cluster.world_size)
    return attrs.evolve(job, cluster=cluster)


def train(job: Job, steps: int) -> tuple[on_ranks.Trained, set[str]]:
    """A few steps on the emulated npu, and the ops of torch_npu that ran."""
    executed: set[str] = set()
    with emulated_npu(executed=executed):  # each process has its own npu, the first
        return on_ranks.train(job, steps), executed
