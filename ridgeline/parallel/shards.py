"""Shards: which part of every parameter a rank owns, and under which name Megatron-core keeps it there.

    role                                 dim split          over
    embedding, head                      0 (vocabulary)     tp, after padding
    qkv, qkv_bias                        0 (by kv head)     tp
    gate_up, gate_up_bias                0, each half       tp, an expert's over etp
    out, down                            1                  tp, an expert's over etp
    norm, head_norm, router, out_bias, down_bias            kept whole

Experts are owned whole, ``experts/ep`` consecutive ones a rank, before etp splits them.

Source:
    megatron-core 0.16.1: tensor_parallel/layers.py (which dim a linear splits), transformer/mlp.py (gate and up are
    each split), models/gpt/gpt_model.py (a tied head on a stage of its own keeps a copy of the embedding).
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import Literal, NamedTuple, Protocol, TypeAlias

import attrs

from ridgeline.core.frozen import frozen
from ridgeline.core.layout import Layout
from ridgeline.core.model import ModelSpec
from ridgeline.core.params import Param, Role, block_params, fqn_of, model_params
from ridgeline.parallel.mesh import ExpertCoords, Mesh, expert_coords, rank_coords
from ridgeline.parallel.stages import StageMap

Box: TypeAlias = tuple[tuple[int, int], ...]
OUTPUT = "output_layer.weight"


class Split(NamedTuple):
    """A dim cut evenly over an axis; each of ``blocks`` equal parts is cut on its own (2: gate and up)."""

    dim: int
    axis: Literal["tp", "etp"]
    blocks: int = 1


@frozen
class Shard:
    """How one tensor lies on the mesh: its shape with the vocabulary's padding, and the dims that are split."""

    global_shape: tuple[int, ...]
    splits: tuple[Split, ...] = ()


class ParamRow(NamedTuple):
    """Equal tensors of a model: one for each of its layers (None: outside of them) and of its experts, if any."""

    layers: range | None
    param: Param
    shard: Shard


@frozen
class LocalParam:
    """One parameter as one rank holds it.

    Attributes:
        chunk: The model chunk that holds it.
        name: Its name within the chunk, as Megatron-core spells it there.
        fqn: Its canonical name; of a tied head's copy, that of the embedding.
        param: Its row of the parameter table.
        shard: How it lies on the mesh.
        local_shape: Its shape on this rank.
        expert: The global index of its expert, None for a tensor that is no expert's.
    """

    chunk: int
    name: str
    fqn: str
    param: Param
    shard: Shard
    local_shape: tuple[int, ...]
    expert: int | None = None


def padded_vocab(vocab_size: int, layout: Layout) -> int:
    """Rows of the embedding once every tp rank has the same multiple of ``vocab_multiple``.

    Example:
        >>> padded_vocab(32003, Layout(tp=2, vocab_multiple=128))
        32256
    """
    multiple = layout.tp * layout.vocab_multiple
    return math.ceil(vocab_size / multiple) * multiple


def shard_of(param: Param, layout: Layout) -> Shard:
    """How a parameter lies on the mesh of this layout, by its role.

    Example:
        >>> shard_of(Param("mlp.linear_fc1.weight", (64, 8), "gate_up"), Layout(tp=4))
        Shard(global_shape=(64, 8), splits=(Split(dim=0, axis='tp', blocks=2),))
    """
    axis = "etp" if param.experts else "tp"
    match param.role:
        case "embedding" | "head":
            return Shard((padded_vocab(param.shape[0], layout), *param.shape[1:]), (Split(0, "tp"),))
        case "qkv" | "qkv_bias":
            return Shard(param.shape, (Split(0, "tp"),))
        case "gate_up" | "gate_up_bias":
            return Shard(param.shape, (Split(0, axis, blocks=2),))
        case "out" | "down":
            return Shard(param.shape, (Split(1, axis),))
        case "norm" | "head_norm" | "router" | "out_bias" | "down_bias":
            return Shard(param.shape)


def plan_shards(model: ModelSpec, layout: Layout) -> tuple[ParamRow, ...]:
    """Every parameter of a model and how it lies on the mesh, in model order, equal layers in one row.

    Raises:
        PlanError: A block's mixer has no parameter table yet.
    """
    outside = [ParamRow(None, param, shard_of(param, layout)) for param in _outside_layers(model)]
    rows, first = [], 0
    for run in model.blocks:
        layers = range(first, first + run.count)
        rows += [ParamRow(layers, param, shard_of(param, layout)) for param in block_params(run.block, model.hidden)]
        first = layers.stop
    return (outside[0], *rows, *outside[1:])


def local_shape(shard: Shard, degrees: Mesh | Layout) -> tuple[int, ...]:
    """The shape on one rank.

    Example:
        >>> local_shape(Shard((64, 8), (Split(0, "tp", 2),)), Layout(tp=4))
        (16, 8)
    """
    shape = list(shard.global_shape)
    for split in shard.splits:
        shape[split.dim] //= getattr(degrees, split.axis)
    return tuple(shape)


def slices_of(shard: Shard, rank: int, mesh: Mesh) -> tuple[Box, ...]:
    """The boxes of the global tensor that a rank owns, as ``(start, stop)`` of each dim.

    Laid one after the other along the split dim they make the local tensor.

    Example:
        >>> slices_of(Shard((64, 8), (Split(0, "tp", 2),)), 1, Mesh(tp=4))
        (((8, 16), (0, 8)), ((40, 48), (0, 8)))
    """
    dense, expert = rank_coords(rank, mesh), expert_coords(rank, mesh)
    intervals: list[tuple[tuple[int, int], ...]] = [((0, size),) for size in shard.global_shape]
    for split in shard.splits:
        place = dense.tp_rank if split.axis == "tp" else expert.etp_rank
        block = shard.global_shape[split.dim] // split.blocks
        part = block // getattr(mesh, split.axis)
        starts = [b * block + place * part for b in range(split.blocks)]
        intervals[split.dim] = tuple((start, start + part) for start in starts)
    return tuple(product(*intervals))


def experts_of(experts: int, coords: ExpertCoords, degrees: Mesh | Layout) -> range:
    """The global indices of the experts a rank owns.

    Example:
        >>> experts_of(8, expert_coords(1, Mesh(dp=4, ep=4)), Mesh(dp=4, ep=4))
        range(2, 4)
    """
    local = experts // degrees.ep
    return range(coords.ep_rank * local, (coords.ep_rank + 1) * local)


def stage_rows(shards: tuple[ParamRow, ...], stages: StageMap, stage: int) -> Iterator[tuple[ParamRow, int]]:
    """The rows a stage holds, each with how many of its layers lie there; a tied head's copy of the embedding too."""
    layers = stages.layers[stage]
    for row in shards:
        if row.layers is None:
            copies = int(row.param.role in outside_roles(shards, stages, stage))
        else:
            copies = min(row.layers.stop, layers[-1] + 1) - max(row.layers.start, layers[0]) if layers else 0
        if copies > 0:
            yield row, copies


def outside_roles(shards: tuple[ParamRow, ...], stages: StageMap, stage: int) -> tuple[Role, ...]:
    """Roles of the parameters outside of the layers that a stage holds; a tied head is an embedding."""
    first: tuple[Role, ...] = ("embedding",) if stage == 0 else ()
    if stage < stages.num_stages - 1:
        return first
    tied = all(row.param.role != "head" for row in shards)
    return (*first, "norm", *(() if tied and stages.ends_meet else ("embedding",) if tied else ("head",)))


class LaidOut(Protocol):
    """A model on a mesh, as every plan is."""

    @property
    def mesh(self) -> Mesh: ...
    @property
    def stages(self) -> StageMap: ...
    @property
    def shards(self) -> tuple[ParamRow, ...]: ...


def rank_params(plan: LaidOut, rank: int) -> Iterator[LocalParam]:
    """Every parameter a rank holds, chunk by chunk and in model order.

    Raises:
        SpecError: ``rank`` lies outside the mesh.
    """
    pp_rank, experts = rank_coords(rank, plan.mesh).pp_rank, expert_coords(rank, plan.mesh)
    outside = {row.param.role: row for row in plan.shards if row.layers is None}
    for chunk, stage in enumerate(plan.stages.owned_by(pp_rank)):
        layers = plan.stages.layers[stage]
        place = {"chunk": chunk, "first_layer": min(layers, default=0), "mesh": plan.mesh}
        roles = outside_roles(plan.shards, plan.stages, stage)
        if stage == 0:
            yield _local(outside["embedding"], None, **place)
        for layer in layers:
            for row in plan.shards:
                if row.layers is not None and layer in row.layers:
                    owned = experts_of(row.param.experts, experts, plan.mesh) if row.param.experts else (None,)
                    for expert in owned:
                        yield _local(row, layer, expert=expert, first_expert=owned[0], **place)
        for role in roles[1:] if stage == 0 else roles:
            held = _local(outside[role], None, **place)
            yield attrs.evolve(held, name=OUTPUT) if role == "embedding" else held


def _local(
    row: ParamRow,
    layer: int | None,
    *,
    chunk: int,
    first_layer: int,
    mesh: Mesh,
    expert: int | None = None,
    first_expert: int | None = None,
) -> LocalParam:
    own_layer = None if layer is None else layer - first_layer
    own_expert = None if expert is None or first_expert is None else expert - first_expert
    return LocalParam(
        chunk=chunk,
        name=fqn_of(own_layer, row.param, expert=own_expert),
        fqn=fqn_of(layer, row.param, expert=expert),
        param=row.param,
        shard=row.shard,
        local_shape=local_shape(row.shard, mesh),
        expert=expert,
    )


def _outside_layers(model: ModelSpec) -> Iterator[Param]:
    """The parameters before and after the layers."""
    without_layers = attrs.evolve(model, blocks=(attrs.evolve(model.blocks[0], count=1),))
    return (param for layer, param in model_params(without_layers) if layer is None)
