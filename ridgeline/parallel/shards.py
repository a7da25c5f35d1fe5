"""Shards: which part of every parameter a rank owns, and under which name Megatron-core keeps it there.

    role                                 dim split          over
    embedding, head, head_bias           0 (vocabulary)     tp, after padding
    qkv, qkv_bias                        0 (by kv head)     tp
    column, per_head                     0 (by head)        tp
    fused, conv, conv_bias               0, each part       tp
    gate_up, gate_up_bias                0, each half       tp, an expert's over etp
    up, up_bias                          0                  tp, an expert's over etp
    out, down                            1                  tp, an expert's over etp
    all others                           kept whole

Experts are owned whole, ``experts/ep`` consecutive ones a rank, before etp splits them.

Source:
    megatron-core 0.16.1: tensor_parallel/layers.py (which dim a linear splits), transformer/mlp.py (gate and up are
    each split), models/gpt/gpt_model.py (a tied head on a stage of its own keeps a copy of the embedding).
"""

import math
from collections.abc import Iterable, Iterator
from itertools import accumulate, product
from typing import Literal, NamedTuple, Protocol, TypeAlias

import attrs

from ridgeline.core.frozen import frozen
from ridgeline.core.job import Lora
from ridgeline.core.layout import Layout
from ridgeline.core.model import ModelSpec
from ridgeline.core.params import Param, block_params, fqn_of, outer_params, with_adapters
from ridgeline.parallel.mesh import ExpertCoords, Mesh, expert_coords, rank_coords
from ridgeline.parallel.stages import StageMap

Box: TypeAlias = tuple[tuple[int, int], ...]
OUTPUT = "output_layer.weight"


class Split(NamedTuple):
    """A dim cut evenly over an axis.

    Each of ``blocks`` equal parts is cut on its own (2: gate and up), or each of ``parts`` of these sizes.
    """

    dim: int
    axis: Literal["tp", "etp"]
    blocks: int = 1
    parts: tuple[int, ...] = ()

    def sizes(self, size: int) -> tuple[int, ...]:
        """The parts of a dim of this size."""
        return self.parts or (size // self.blocks,) * self.blocks


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
        Shard(global_shape=(64, 8), splits=(Split(dim=0, axis='tp', blocks=2, parts=()),))
    """
    axis = "etp" if param.experts else "tp"
    match param.role:
        case "embedding" | "head" | "head_bias":
            return Shard((padded_vocab(param.shape[0], layout), *param.shape[1:]), (Split(0, "tp"),))
        case "qkv" | "qkv_bias" | "column" | "per_head" | "fused" | "conv" | "conv_bias":
            return Shard(param.shape, (Split(0, "tp", parts=param.parts),))
        case "gate_up" | "gate_up_bias":
            return Shard(param.shape, (Split(0, axis, blocks=2),))
        case "up" | "up_bias":
            return Shard(param.shape, (Split(0, axis),))
        case "out" | "down":
            return Shard(param.shape, (Split(1, axis),))
        case _:
            return Shard(param.shape)


def plan_shards(model: ModelSpec, layout: Layout, adapter: Lora | None = None) -> tuple[ParamRow, ...]:
    """Every parameter of a model and of its adapters and how it lies on the mesh, in model order.

    Equal layers are one row.
    """

    def adapted(params: Iterable[Param]) -> Iterable[Param]:
        return params if adapter is None else with_adapters(params, adapter)

    outside = [ParamRow(None, param, shard_of(param, layout)) for param in adapted(outer_params(model))]
    rows, first = [row for row in outside if row.param.place != "last"], 0
    for run in model.blocks:
        layers = range(first, first + run.count)
        params = adapted(block_params(run.block, model))
        rows += [ParamRow(layers, param, shard_of(param, layout)) for param in params]
        first = layers.stop
    return (*rows, *(row for row in outside if row.param.place == "last"))


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
        sizes, degree = split.sizes(shard.global_shape[split.dim]), getattr(mesh, split.axis)
        begins = accumulate(sizes, initial=0)
        parts = [(begin + place * (size // degree), size // degree) for begin, size in zip(begins, sizes, strict=False)]
        intervals[split.dim] = tuple((start, start + size) for start, size in parts)
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
    """The rows a stage holds, each with how many of its layers lie there; a shared embedding's copy too."""
    layers = stages.layers[stage]
    for row in shards:
        if row.layers is None:
            copies = int(holds_outer(row.param, stages, stage))
        else:
            copies = min(row.layers.stop, layers[-1] + 1) - max(row.layers.start, layers[0]) if layers else 0
        if copies > 0:
            yield row, copies


def holds_outer(param: Param, stages: StageMap, stage: int) -> bool:
    """Whether a stage holds a parameter that lies outside of the layers.

    A rank that owns both ends of the model holds a shared embedding once, with the first stage.
    """
    if stage == 0 and param.place in ("first", "both"):
        return True
    return stage == stages.num_stages - 1 and (
        param.place == "last" or (param.place == "both" and not (stage == 0 or stages.ends_meet))
    )


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
    # With multi-token prediction the last stage has an embedding too, whose weight a tied head reads there.
    head_copies = not any(row.param.role == "head" or row.param.name.startswith("mtp.") for row in plan.shards)
    for chunk, stage in enumerate(plan.stages.owned_by(pp_rank)):
        layers = plan.stages.layers[stage]
        place = {"chunk": chunk, "first_layer": min(layers, default=0), "mesh": plan.mesh}
        outside = [row for row in plan.shards if row.layers is None and holds_outer(row.param, plan.stages, stage)]
        before = [
            row
            for row in outside
            if (stage == 0 and row.param.place != "last") or (row.param.role == "embedding" and not head_copies)
        ]
        for row in before:
            yield from _locals(row, None, experts, **place)
        for layer in layers:
            for row in plan.shards:
                if row.layers is not None and layer in row.layers:
                    yield from _locals(row, layer, experts, **place)
        for row in sorted((row for row in outside if row not in before), key=lambda row: row.param.role == "embedding"):
            for held in _locals(row, None, experts, **place):
                yield attrs.evolve(held, name=OUTPUT) if head_copies and row.param.role == "embedding" else held


def _locals(
    row: ParamRow, layer: int | None, coords: ExpertCoords, *, chunk: int, first_layer: int, mesh: Mesh
) -> Iterator[LocalParam]:
    """A row's tensors on one rank: one, or one for each of its experts."""
    owned = experts_of(row.param.experts, coords, mesh) if row.param.experts else (None,)
    for own_expert, expert in enumerate(owned):
        own_layer = None if layer is None else layer - first_layer
        yield LocalParam(
            chunk=chunk,
            name=fqn_of(own_layer, row.param, expert=own_expert),
            fqn=fqn_of(layer, row.param, expert=expert),
            param=row.param,
            shard=row.shard,
            local_shape=local_shape(row.shard, mesh),
            expert=expert,
        )
