"""What a distributed optimizer updates on every rank, as holders of buffers: fp32 masters and moments lie alike.

Source:
    megatron-core 0.16.1: distributed/param_and_grad_buffer.py, ``_ParamAndGradBuffer`` (order, alignment, buckets);
    distributed/distributed_data_parallel.py (the size of a bucket, and where there is but one).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from math import ceil, lcm, prod

from ridgeline.checkpoint.pieces import Buffer, Holder, Piece, flat_pieces
from ridgeline.checkpoint.ranks import Part, buffers_of, parts_of, stacks_of, weight_holders
from ridgeline.parallel.held import BUCKET_ALIGNMENT, PARAM_ALIGNMENT, bucket_elements, has_two_embeddings, padded
from ridgeline.parallel.plan import Plan
from ridgeline.parallel.shards import LocalParam


def optimizer_holders(plan: Plan) -> tuple[Holder, ...]:
    """What every rank updates: one buffer a parameter, the flat range of it that is the rank's.

    Without the distributed optimizer that is all that the rank holds.
    """
    if not plan.job.memory.distributed_optimizer:
        return weight_holders(plan)
    two_embeddings = has_two_embeddings(plan.job.model, plan.stages)
    holders = []
    for part in parts_of(plan):
        chunks = []
        for chunk in range(plan.stages.vpp):
            params = _in_module_order(param for param in part.params if param.chunk == chunk)
            stacks = stacks_of(params, part.places[0].ranks[0], plan.mesh)
            ranges = shard_ranges(
                [stack.elements for stack in stacks],
                [two_embeddings and stack.key.startswith("embedding.") for stack in stacks],
                ranks=len(part.places[0].ranks),
                bucket=_bucket(plan, part, chunk),
            )
            chunks.append((stacks, tuple(ranges)))
        for name, ranks in part.places:
            shards: list[list[Buffer]] = [[] for _ in ranks]
            for stacks, ranges in chunks:
                buffers = buffers_of(stacks, ranks[0], plan.mesh)
                for index, position, start, stop in ranges:
                    shards[position].append(_flat(buffers[index], start, stop))
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


def _bucket(plan: Plan, part: Part, chunk: int) -> int | None:
    """The size at which a bucket ends; only the first stage has several."""
    if part.pp_rank or chunk or not plan.job.comm.overlap_grad_reduce:
        return None
    return bucket_elements(len(part.places[0].ranks))


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


def _flat(buffer: Buffer, start: int, stop: int) -> Buffer:
    """A flat range of a rank's buffer, as a buffer of one dim; all of it as it is."""
    if stop - start == buffer.elements:
        return buffer
    pieces: list[Piece] = []
    for piece in buffer.pieces:
        count = prod(piece.box.shape)
        low, high = max(start, piece.start), min(stop, piece.start + count)
        if low < high:
            pieces += flat_pieces(piece, low - piece.start, high - piece.start, at=max(0, piece.start - start))
    return Buffer(buffer.name, (stop - start,), tuple(pieces))
