"""What the ranks of a job hold, as holders of buffers: weights, and the shards that a distributed optimizer updates.

Ranks that hold the same are one holder: a dense one for each (tp_rank, pp_rank), an expert one for each (etp_rank,
ep_rank, pp_rank). cp and dp replicate weights. The distributed optimizer's fp32 masters and its moments lie alike, in
one shard for each rank.

Source:
    megatron-core 0.16.1: distributed/param_and_grad_buffer.py, ``_ParamAndGradBuffer`` (order, alignment, buckets);
    distributed/distributed_data_parallel.py (the size of a bucket, and where there is but one).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, product
from math import ceil, lcm, prod
from typing import NamedTuple

from ridgeline.checkpoint.boxes import Box, Shape, meeting, within
from ridgeline.checkpoint.names import stored
from ridgeline.checkpoint.pieces import Buffer, Holder, Piece, flat_pieces, piece_of
from ridgeline.parallel.held import BUCKET_ALIGNMENT, PARAM_ALIGNMENT, bucket_elements, has_two_embeddings, padded
from ridgeline.parallel.mesh import ExpertCoords, Mesh, RankCoords, group_of, rank_of
from ridgeline.parallel.plan import Plan
from ridgeline.parallel.shards import Box as Intervals
from ridgeline.parallel.shards import LocalParam, rank_params, slices_of


def weight_holders(plan: Plan) -> tuple[Holder, ...]:
    """The weights of every rank of a job, those that hold the same together.

    Padding of the vocabulary is no part of it: it keeps what the rank holds.
    """
    return tuple(
        Holder(place.name, tuple(rank_buffers(place.params, place.ranks[0], plan.mesh)), place.ranks)
        for place in _places(plan)
    )


def optimizer_holders(plan: Plan) -> tuple[Holder, ...]:
    """What every rank updates: one buffer a parameter, the flat range of it that is the rank's.

    Without the distributed optimizer that is all that the rank holds.
    """
    if not plan.job.memory.distributed_optimizer:
        return weight_holders(plan)
    two_embeddings = has_two_embeddings(plan.job.model, plan.stages)
    holders = []
    for place in _places(plan):
        shards: list[list[Buffer]] = [[] for _ in place.ranks]
        for chunk in range(plan.stages.vpp):
            params = _in_module_order(param for param in place.params if param.chunk == chunk)
            buffers = rank_buffers(params, place.ranks[0], plan.mesh)
            shares = shard_ranges(
                [buffer.elements for buffer in buffers],
                [two_embeddings and _is_embedding(buffer) for buffer in buffers],
                ranks=len(place.ranks),
                bucket=_bucket(plan, place, chunk),
            )
            for index, rank, start, stop in shares:
                shards[rank].append(_flat(buffers[index], start, stop))
        holders += [
            Holder(f"{place.name} shard{position}", tuple(buffers), (rank,))
            for position, (rank, buffers) in enumerate(zip(place.ranks, shards, strict=True))
        ]
    return tuple(holders)


def shard_ranges(
    sizes: Sequence[int], alone: Sequence[bool], *, ranks: int, bucket: int | None
) -> Iterator[tuple[int, int, int, int]]:
    """How a distributed optimizer shares out a buffer of parameters: (parameter, rank, start, stop), flat ranges.

    Args:
        sizes: Elements of each parameter, in the module's order; the buffer is filled from the last one.
        alone: Which of them have a bucket of their own.
        ranks: That share it.
        bucket: A bucket ends with the parameter that makes it this large; None puts all in one.

    Example:
        >>> list(shard_ranges([100, 60], [False, False], ranks=2, bucket=None))
        [(1, 0, 0, 60), (0, 0, 0, 64), (0, 1, 64, 100)]
    """
    begin = position = 0
    inside: list[tuple[int, int]] = []

    def ended() -> Iterator[tuple[int, int, int, int]]:
        nonlocal begin, position
        position = padded(position, lcm(ranks, BUCKET_ALIGNMENT))
        share = (position - begin) // ranks
        for index, start in inside:
            stop = start + sizes[index]
            for rank in range((start - begin) // share, ceil((stop - begin) / share)):
                low, high = begin + rank * share, begin + (rank + 1) * share
                yield index, rank, max(start, low) - start, min(stop, high) - start
        inside.clear()
        begin = position

    for index in reversed(range(len(sizes))):
        position = padded(position, PARAM_ALIGNMENT)
        if alone[index] and inside:
            yield from ended()
        inside.append((index, position))
        position += sizes[index]
        if alone[index] or (bucket is not None and position - begin >= bucket):
            yield from ended()
    if inside:
        yield from ended()


def rank_buffers(params: Iterable[LocalParam], rank: int, mesh: Mesh) -> list[Buffer]:
    """The parameters of a rank as buffers, row-major, the boxes of each one after the other.

    Equal layers are laid out once. Experts that follow each other are one buffer, whose first dim counts them.
    """
    known: dict[int, tuple[_Laid, ...]] = {}
    buffers = []
    for name, run in groupby(params, key=_stacked_name):
        first, *others = run
        row = id(first.param)  # of the plan, which outlives the table
        if row not in known:
            boxes = slices_of(first.shard, rank, mesh)
            known[row] = tuple(_laid_out(first.param.shape, first.local_shape, boxes))
        place, count = stored(first.fqn, first.param), 1 + len(others)
        if place.expert is None:
            pieces = [Piece(place.key, laid.box, laid.start, laid.strides) for laid in known[row]]
            buffers.append(Buffer(name, first.local_shape, tuple(pieces)))
        else:
            each = prod(first.local_shape)
            pieces = [
                Piece(
                    place.key,
                    Box((place.expert, *laid.box.offset), (count, *laid.box.shape)),
                    laid.start,
                    (each, *laid.strides),
                )
                for laid in known[row]
            ]
            experts = f"{name}[{place.expert}:{place.expert + count}]"
            buffers.append(Buffer(experts, (count, *first.local_shape), tuple(pieces)))
    return buffers


def _stacked_name(param: LocalParam) -> str:
    """The name of a rank's buffer: chunk and name, an expert's without its number."""
    if param.expert is None:
        return f"{param.chunk}.{param.name}"
    return f"{param.chunk}.{stored(param.name, param.param).key}"


class _Laid(NamedTuple):
    """A box of a parameter, and where it lies in the rank's tensor."""

    box: Box
    start: int
    strides: Shape


def _laid_out(shape: Shape, local_shape: Shape, boxes: tuple[Intervals, ...]) -> Iterator[_Laid]:
    """Each box of a parameter of ``shape``, without padding, in the rank's tensor."""
    starts = []
    for intervals in zip(*boxes, strict=True):
        position, known = 0, {}
        for interval in intervals:
            if interval not in known:
                known[interval] = position
                position += interval[1] - interval[0]
        starts.append(known)
    for intervals in boxes:
        box = Box(tuple(a for a, _ in intervals), tuple(b - a for a, b in intervals))
        at = tuple(known[interval] for known, interval in zip(starts, intervals, strict=True))
        if (real := meeting(box, Box((0,) * len(shape), shape))) is not None:
            inner = within(real, box).offset
            piece = piece_of("", real, shape=local_shape, at=tuple(a + b for a, b in zip(at, inner, strict=True)))
            yield _Laid(real, piece.start, piece.strides)


class _Place(NamedTuple):
    """A set of ranks that hold the same parameters, and those."""

    name: str
    pp_rank: int
    ranks: tuple[int, ...]
    params: tuple[LocalParam, ...]


def _places(plan: Plan) -> Iterator[_Place]:
    mesh = plan.mesh
    for pp_rank, tp_rank in product(range(mesh.pp), range(mesh.tp)):
        rank = rank_of(RankCoords(tp_rank=tp_rank, cp_rank=0, dp_rank=0, pp_rank=pp_rank), mesh)
        params = tuple(param for param in rank_params(plan, rank) if not param.param.experts)
        yield _Place(f"tp{tp_rank} pp{pp_rank}", pp_rank, group_of(rank, mesh, "dp-cp"), params)
    if not any(row.param.experts for row in plan.shards):
        return
    for pp_rank, ep_rank, etp_rank in product(range(mesh.pp), range(mesh.ep), range(mesh.etp)):
        rank = rank_of(ExpertCoords(etp_rank=etp_rank, ep_rank=ep_rank, edp_rank=0, pp_rank=pp_rank), mesh)
        params = tuple(param for param in rank_params(plan, rank) if param.param.experts)
        yield _Place(f"etp{etp_rank} ep{ep_rank} pp{pp_rank}", pp_rank, group_of(rank, mesh, "edp"), params)


def _bucket(plan: Plan, place: _Place, chunk: int) -> int | None:
    """The size at which a bucket ends; only the first stage has several."""
    if place.pp_rank or chunk or not plan.job.comm.overlap_grad_reduce:
        return None
    return bucket_elements(len(place.ranks))


def _in_module_order(params: Iterable[LocalParam]) -> list[LocalParam]:
    """Parameters as Megatron-core's modules register them: an output projection before what feeds it, then each expert
    with all that is its own."""
    ordered: list[LocalParam] = []
    for _, run in groupby(params, key=_layer_of):
        ordered += sorted(run, key=_within_layer)
    return ordered


def _layer_of(param: LocalParam) -> str:
    layer = re.match(r"decoder\.layers\.\d+|mtp\.layers\.\d+\.transformer_layer", param.name)
    return layer[0] if layer else param.name


def _within_layer(param: LocalParam) -> tuple[int, int]:
    parts = ("input_layernorm.", "self_attention.linear_proj.", "self_attention.", "pre_mlp_layernorm.", "")
    return next(index for index, part in enumerate(parts) if part in param.name), param.expert or 0


def _is_embedding(buffer: Buffer) -> bool:
    return bool(buffer.pieces) and buffer.pieces[0].key.startswith("embedding.")


def _flat(buffer: Buffer, start: int, stop: int) -> Buffer:
    """A flat range of a rank's buffer, as a buffer of one dim; all of it as it is."""
    if stop - start == buffer.elements:
        return buffer
    pieces: list[Piece] = []
    for piece in buffer.pieces:
        count = prod(piece.box.shape)
        low, high = max(start, piece.start), min(stop, piece.start + count)
        if low < high:
            for part in flat_pieces(piece, low - piece.start, high - piece.start):
                pieces.append(part._replace(start=part.start + low - start))
    return Buffer(buffer.name, (stop - start,), tuple(pieces))
