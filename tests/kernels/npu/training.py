"""Training steps of small models on the emulated npu, as ranks run them."""

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ridgeline.core.job import Job
from ridgeline.kernels.device import open_device
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


Call = tuple[str, tuple[tuple[int, ...], ...]]
"""An op's name, and the shapes of the tensors it was called with."""


def calls_of_a_step(job: Job) -> tuple[list[Call], list[float]]:
    """Every op of a deterministic run of one step, in order, and its loss."""
    calls = _Calls()
    with emulated_npu(), calls, open_device("npu").deterministic(job.run.seed):
        losses = on_ranks.train(job, 1).losses
    return calls.made, losses


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.made: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [leaf for leaf in tree_flatten((args, kwargs or {}))[0] if isinstance(leaf, torch.Tensor)]
        self.made.append((func._schema.name, tuple(tuple(tensor.shape) for tensor in tensors)))
        return func(*args, **(kwargs or {}))
