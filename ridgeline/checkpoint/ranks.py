"""What the ranks of a job hold, as holders of buffers: weights, and the shards that a distributed optimizer updates.

Ranks that hold the same are one holder: a dense one for each (tp_rank, pp_rank), an expert one for each (etp_rank,
ep_rank, pp_rank). cp and dp replicate weights. The distributed optimizer's fp32 masters and its moments lie alike, in
one shard for each rank.

Source:
    megatron-core 0.16.1: distributed/param_and_grad_buffer.py, ``_ParamAndGradBuffer`` (order, alignment, buckets);
    distributed/distributed_data_parallel.py (the size of a bucket, and where there is but one).
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import ceil, lcm, prod

from ridgeline.checkpoint.boxes import Box, Shape, meeting, within
from ridgeline.checkpoint.pieces import Buffer, Holder, Piece, flat_pieces, piece_of
from ridgeline.parallel.held import BUCKET_ALIGNMENT, PARAM_ALIGNMENT
from ridgeline.parallel.mesh import ExpertCoords, RankCoords, group_of, rank_of
from ridgeline.parallel.plan import Plan
from ridgeline.parallel.shards import Box as Intervals
from ridgeline.parallel.shards import LocalParam, rank_params, slices_of

BUCKET_ELEMENTS = 40_000_000
BUCKET_ELEMENTS_PER_RANK = 1_000_000


def weight_holders(plan: Plan) -> tuple[Holder, ...]:
    """The weights of every rank of a job, those that hold the same together.

    Padding of the vocabulary is no part of it: it keeps what the rank holds.
    """
    return tuple(
        Holder(name, tuple(buffer_of(param, slices_of(param.shard, ranks[0], plan.mesh)) for param in params), ranks)
        for name, ranks, params in _places(plan)
    )


def optimizer_holders(plan: Plan) -> tuple[Holder, ...]:
    """What every rank updates: one buffer a parameter, the flat range of it that is the rank's.

    Without the distributed optimizer that is all that the rank holds.
    """
    if not plan.job.memory.distributed_optimizer:
        return weight_holders(plan)
    holders = []
    for name, ranks, params in _places(plan):
        held = [buffer_of(param, slices_of(param.shard, ranks[0], plan.mesh)) for param in params]
        shards: list[list[Buffer]] = [[] for _ in ranks]
        for buffers, bucket in _reduced_together(plan, params, held, len(ranks)):
            alone = [plan.mesh.pp > 1 and plan.job.model.tied_embeddings and _is_embedding(b) for b in buffers]
            sizes = [buffer.elements for buffer in buffers]
            for index, rank, start, stop in shard_ranges(sizes, alone, ranks=len(ranks), bucket=bucket):
                shards[rank].append(_flat(buffers[index], start, stop))
        holders += [
            Holder(f"{name} shard{position}", tuple(buffers), (rank,))
            for position, (rank, buffers) in enumerate(zip(ranks, shards, strict=True))
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
        position = _padded(position, lcm(ranks, BUCKET_ALIGNMENT))
        share = (position - begin) // ranks
        for index, start in inside:
            stop = start + sizes[index]
            for rank in range((start - begin) // share, ceil((stop - begin) / share)):
                low, high = begin + rank * share, begin + (rank + 1) * share
                yield index, rank, max(start, low) - start, min(stop, high) - start
        inside.clear()
        begin = position

    for index in reversed(range(len(sizes))):
        position = _padded(position, PARAM_ALIGNMENT)
        if alone[index] and inside:
            yield from ended()
        inside.append((index, position))
        position += sizes[index]
        if alone[index] or (bucket is not None and position - begin >= bucket):
            yield from ended()
    if inside:
        yield from ended()


def buffer_of(param: LocalParam, boxes: tuple[Intervals, ...]) -> Buffer:
    """A rank's parameter as a buffer: row-major, its boxes one after the other."""
    pieces = (
        Piece(param.fqn, box, start, strides)
        for box, start, strides in _laid_out(param.param.shape, param.local_shape, boxes)
    )
    return Buffer(f"{param.chunk}.{param.name}", param.local_shape, tuple(pieces))


@functools.cache
def _laid_out(shape: Shape, local_shape: Shape, boxes: tuple[Intervals, ...]) -> tuple[tuple[Box, int, Shape], ...]:
    """Each box of a parameter of ``shape``, without padding, and its start and strides in the rank's tensor."""
    starts = []
    for intervals in zip(*boxes, strict=True):
        position, known = 0, {}
        for interval in intervals:
            if interval not in known:
                known[interval] = position
                position += interval[1] - interval[0]
        starts.append(known)
    placed = []
    for intervals in boxes:
        box = Box(tuple(a for a, _ in intervals), tuple(b - a for a, b in intervals))
        at = tuple(known[interval] for known, interval in zip(starts, intervals, strict=True))
        if (real := meeting(box, Box((0,) * len(shape), shape))) is not None:
            inner = within(real, box).offset
            piece = piece_of("", real, shape=local_shape, at=tuple(a + b for a, b in zip(at, inner, strict=True)))
            placed.append((real, piece.start, piece.strides))
    return tuple(placed)


def _places(plan: Plan) -> Iterator[tuple[str, tuple[int, ...], list[LocalParam]]]:
    """Every set of ranks that hold the same parameters, and those."""
    mesh = plan.mesh
    for pp_rank, tp_rank in product(range(mesh.pp), range(mesh.tp)):
        rank = rank_of(RankCoords(tp_rank=tp_rank, cp_rank=0, dp_rank=0, pp_rank=pp_rank), mesh)
        params = [param for param in rank_params(plan, rank) if not param.param.experts]
        yield f"tp{tp_rank} pp{pp_rank}", group_of(rank, mesh, "dp-cp"), params
    if not any(row.param.experts for row in plan.shards):
        return
    for pp_rank, ep_rank, etp_rank in product(range(mesh.pp), range(mesh.ep), range(mesh.etp)):
        rank = rank_of(ExpertCoords(etp_rank=etp_rank, ep_rank=ep_rank, edp_rank=0, pp_rank=pp_rank), mesh)
        params = [param for param in rank_params(plan, rank) if param.param.experts]
        yield f"etp{etp_rank} ep{ep_rank} pp{pp_rank}", group_of(rank, mesh, "edp"), params


def _reduced_together(
    plan: Plan, params: Sequence[LocalParam], held: Sequence[Buffer], ranks: int
) -> Iterator[tuple[list[Buffer], int | None]]:
    """The buffers of each chunk, in the order of Megatron-core's modules, and the size of its buckets."""
    for chunk in range(plan.stages.vpp):
        mine = [(param, buffer) for param, buffer in zip(params, held, strict=True) if param.chunk == chunk]
        first = bool(mine) and chunk == 0 and _pp_rank(plan, mine[0][0]) == 0
        bucket = max(BUCKET_ELEMENTS, BUCKET_ELEMENTS_PER_RANK * ranks)
        ordered = [buffer for _, buffer in sorted(mine, key=lambda pair: _module_order(pair[0].name))]
        yield ordered, bucket if first and plan.job.comm.overlap_grad_reduce else None


def _pp_rank(plan: Plan, param: LocalParam) -> int:
    layers = next((stage for stage, layers in enumerate(plan.stages.layers) if _layer(param.fqn) in layers), 0)
    return layers % plan.stages.pp


def _layer(fqn: str) -> int:
    parts = fqn.split(".")
    return int(parts[2]) if parts[0] == "decoder" and parts[1] == "layers" else 0


def _module_order(name: str) -> tuple[object, ...]:
    return ()


def _is_embedding(buffer: Buffer) -> bool:
    return bool(buffer.pieces) and buffer.pieces[0].fqn.startswith("embedding.")


def _flat(buffer: Buffer, start: int, stop: int) -> Buffer:
    """A flat range of a rank's buffer, as a buffer of one dim."""
    pieces: list[Piece] = []
    for piece in buffer.pieces:
        count = prod(piece.box.shape)
        low, high = max(start, piece.start), min(stop, piece.start + count)
        if low < high:
            for part in flat_pieces(piece, low - piece.start, high - piece.start):
                pieces.append(part._replace(start=part.start + low - start))
    return Buffer(buffer.name, (stop - start,), tuple(pieces))


def _padded(size: int, multiple: int) -> int:
    return ceil(size / multiple) * multiple
