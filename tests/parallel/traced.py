"""What a rank really does in a training step: every collective it runs, and what it keeps for the backward."""

from collections import Counter
from typing import Any

import torch
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

from ridgeline.core.job import Job
from ridgeline.kernels.device import open_device
from ridgeline.models.program import lower
from ridgeline.models.runtime.build import build
from ridgeline.models.runtime.step import train_step
from ridgeline.parallel.plan import plan
from tests.checkpoint.training import microbatches

KINDS = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "alltoall_base_": "all_to_all",
    "broadcast_": "broadcast",
    "send": "p2p",
}
"""Torch's operators, and what a plan calls them."""


class Collectives(TorchDispatchMode):
    """Counts collectives by kind, size of the group and bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, int, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if func.namespace == "c10d" and name in KINDS:
            groups = [arg for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type())]
            size = distributed.ProcessGroup.unbox(groups[0]).size()
            for size_bytes in _whole_bytes(name, [_tensors(arg) for arg in args if _tensors(arg)]):
                if size > 1:
                    self.seen[KINDS[name], 2 if name == "send" else size, size_bytes] += 1
        return func(*args, **(kwargs or {}))


def _whole_bytes(name: str, tensors: list[list[torch.Tensor]]) -> list[int]:
    """The whole tensor of each collective that a call makes."""
    sizes = [[t.numel() * t.element_size() for t in group] for group in tensors]
    if name.endswith("coalesced_"):
        return [max(parts) for parts in zip(*sizes, strict=True)]
    if name in ("allgather_", "reduce_scatter_"):  # given as a list of parts
        return [max(map(sum, sizes))]
    return [max(map(max, sizes))]


def _tensors(arg: Any) -> list[torch.Tensor]:
    if isinstance(arg, torch.Tensor):
        return [arg]
    return [t for item in arg for t in _tensors(item)] if isinstance(arg, (list, tuple)) else []


def collectives_of_a_step(job: Job) -> dict[tuple[str, int, int], int]:
    """How often this rank runs each collective in a step; weights gathered ahead are there from the second step on."""
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        first = int(job.comm.overlap_param_gather)
        for step in range(first):
            train_step(built, microbatches(built, step * job.batch.gbs), step=step)
        with Collectives() as traced:
            train_step(built, microbatches(built, first * job.batch.gbs), step=first)
        return dict(traced.seen)
