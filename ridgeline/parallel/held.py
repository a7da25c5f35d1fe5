"""How many elements one rank holds of each stage, by how their gradients are reduced.

Source:
    megatron-core 0.16.1, distributed/param_and_grad_buffer.py: alignment of the distributed optimizer's buffers, and
    the bucket apart for an embedding that two stages share.
"""

from collections.abc import Mapping
from math import ceil, lcm, prod
from types import MappingProxyType
from typing import NamedTuple

from ridgeline.core.job import Dpo, Job
from ridgeline.core.model import ModelSpec
from ridgeline.parallel.adapters import frozen_bytes
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.shards import ParamRow, local_shape, stage_rows
from ridgeline.parallel.stages import StageMap

WIDTHS: Mapping[str, int] = MappingProxyType({"bf16": 2, "fp16": 2, "fp32": 4})
"""Bytes of an element."""

PARAM_ALIGNMENT = 64  # elements, of each parameter's start in a buffer of the distributed optimizer
BUCKET_ELEMENTS, BUCKET_ELEMENTS_PER_RANK = 40_000_000, 1_000_000
BUCKET_ALIGNMENT = 128  # elements, of the buffer's end, and a whole number for each rank
SHARED_OVER_TP = frozenset(
    ("norm", "norm_bias", "router", "router_bias", "out_bias", "down_bias", "replicated", "positions")
)
"""Under sp each tp rank sees its own tokens only, so that the gradients of these are sums over tp."""


class Held(NamedTuple):
    """Elements that one rank holds of one stage, those that train.

    Attributes:
        dense: Weights whose gradients are reduced over dp and cp.
        expert: Weights whose gradients are reduced over edp.
        replicated: Of ``dense``, those whose gradients are also summed over tp.
        tied: Of ``dense``, an embedding that another stage holds too.
        dense_buffer, tied_buffer, expert_buffer: What is reduced at a time, padding included; a tied embedding has a
            buffer of its own under the distributed optimizer.
        largest: The largest tensor.
        frozen_bytes: Of weights that do not train: those under adapters, and a reference model's.
    """

    dense: int
    expert: int
    replicated: int
    tied: int
    dense_buffer: int
    tied_buffer: int
    expert_buffer: int
    largest: int
    frozen_bytes: int

    @property
    def elements(self) -> int:
        """Weights that train."""
        return self.dense + self.expert

    @property
    def buffers(self) -> int:
        """Elements of all buffers."""
        return self.dense_buffer + self.tied_buffer + self.expert_buffer


def plan_held(job: Job, *, mesh: Mesh, stages: StageMap, shards: tuple[ParamRow, ...]) -> tuple[Held, ...]:
    """What a rank holds of each stage, in model order."""
    return tuple(_held(job, mesh, stages, shards, stage) for stage in range(stages.num_stages))


def _held(job: Job, mesh: Mesh, stages: StageMap, shards: tuple[ParamRow, ...], stage: int) -> Held:
    shared, adapter, width = job.memory.distributed_optimizer, job.adapter, WIDTHS[job.precision.params]
    has_reference = isinstance(job.objective, Dpo) and job.objective.loss != "simpo"
    sizes = {"dense": 0, "expert": 0, "replicated": 0, "tied": 0}
    buffers = {"dense": 0, "tied": 0, "expert": 0}
    largest = frozen = 0
    for row, layers in stage_rows(shards, stages, stage):
        size, role = prod(local_shape(row.shard, mesh)), row.param.role
        if role == "expert_bias":
            continue
        experts = max(1, row.param.experts // mesh.ep)
        copies = layers * experts
        if has_reference and not row.param.low_rank:
            frozen += size * width * copies
        if adapter and row.param.frozen:
            frozen += frozen_bytes(row.param, size, adapter, width=width) * copies
            continue
        kind = "expert" if row.param.experts else "dense"
        tied = role == "embedding" and has_two_embeddings(job.model, stages)
        shared_over_tp = role == "head_norm" or (job.layout.sp and role in SHARED_OVER_TP and kind == "dense")
        replicated = size if mesh.tp > 1 and shared_over_tp else 0
        largest = max(largest, size * experts if job.memory.grouped_experts else size)
        buffers["tied" if tied and shared else kind] += (padded(size, PARAM_ALIGNMENT) if shared else size) * copies
        sizes[kind] += size * copies
        sizes["replicated"] += replicated * copies
        if tied:
            sizes["tied"] += size
    if shared:
        ranks = {"dense": mesh.dp * mesh.cp, "tied": mesh.dp * mesh.cp, "expert": mesh.edp}
        buffers = {name: padded(size, lcm(ranks[name], BUCKET_ALIGNMENT)) for name, size in buffers.items()}
    return Held(
        **sizes,
        **{f"{name}_buffer": size for name, size in buffers.items()},
        largest=largest,
        frozen_bytes=frozen,
    )


def has_two_embeddings(model: ModelSpec, stages: StageMap) -> bool:
    """Whether the ranks of the first stage and of the last each hold the embedding, whose gradients they then sum."""
    return model.shares_embedding and not stages.ends_meet


def bucket_elements(ranks: int) -> int:
    """Elements at which a bucket of gradients ends, where overlap makes several, reduced over so many ranks."""
    return max(BUCKET_ELEMENTS, BUCKET_ELEMENTS_PER_RANK * ranks)


def padded(size: int, multiple: int) -> int:
    """The size, up to a multiple."""
    return ceil(size / multiple) * multiple
