"""What low-rank adapters change of the parameters a rank holds: their own tensors train, the rest are frozen.

A target linear gets two tensors, ``a`` (rank, in) and ``b`` (out, rank). What the linear splits over tp its adapter
splits too; its other half is whole on every rank, and its gradient is summed over tp.

Source:
    arXiv 2106.09685; peft's LoraParallelLinear over Megatron-core, as MindSpeed-LLM's tasks/posttrain/lora uses it.
    NF4, arXiv 2305.14314: 4 bits a weight, of each 64 weights a scale in 8 bits, of each 256 scales one in fp32.
"""

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import NamedTuple

from ridgeline.core.job import Lora
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.shards import ParamRow, local_shape

ROLES: Mapping[str, str] = MappingProxyType(
    {"qkv": "linear_qkv", "out": "linear_proj", "gate_up": "linear_fc1", "down": "linear_fc2"}
)
"""The linear layer of a weight, by the weight's role."""

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)


class Pair(NamedTuple):
    """Elements of an adapter on one rank, and how many of them every tp rank holds alike."""

    elements: int
    replicated: int


def adapter_of(row: ParamRow, adapter: Lora, mesh: Mesh) -> Pair:
    """The adapter of one weight on one rank; none where the weight is no target."""
    if ROLES.get(row.param.role) not in adapter.targets:
        return Pair(0, 0)
    out_size, in_size = local_shape(row.shard, mesh)
    split = {one.dim for one in row.shard.splits if getattr(mesh, one.axis) > 1}
    parts = {0: out_size * adapter.rank, 1: in_size * adapter.rank}
    whole = sum(size for dim, size in parts.items() if split and dim not in split)
    return Pair(sum(parts.values()), whole)


def frozen_bytes(row: ParamRow, adapter: Lora, mesh: Mesh, *, width: int) -> int:
    """Bytes of one frozen weight on one rank."""
    size = prod(local_shape(row.shard, mesh))
    return int(size * NF4_BITS / 8) if adapter.base == "nf4" and row.param.role in ROLES else size * width
