"""What a distributed optimizer updates on every rank, as holders of buffers: fp32 masters and moments lie alike.

Megatron-core lays the parameters of a chunk one behind the other, from the last to the first, and parts each bucket of
them evenly. A rank's share of a bucket is one flat buffer here. Experts of one tensor follow each other in it at equal
steps, so that as many of them as a share holds whole are one piece, and a share takes a few pieces a layer.

Source:
    megatron-core 0.16.1: distributed/param_and_grad_buffer.py, ``_ParamAndGradBuffer`` (order, alignment, buckets);
    distributed/distributed_data_parallel.py (the size of a bucket, and where there is but one).
"""

from collections.abc import Iterable, Iterator, Sequence
from math import ceil, lcm, prod
from typing import NamedTuple

from ridgeline.checkpoint.module_order import in_module_order
from ridgeline.checkpoint.names import stored
from ridgeline.checkpoint.pieces import Buffer, Holder, Piece, flat_pieces
from ridgeline.checkpoint.ranks import Laid, Part, holders_of, laid_out, parts_of, stacked
from ridgeline.core.params import Param
from ridgeline.parallel.held import BUCKET_ALIGNMENT, PARAM_ALIGNMENT, bucket_elements, has_two_embeddings, padded
from ridgeline.parallel.mesh import Mesh, expert_coords
from ridgeline.parallel.plan import Plan
from ridgeline.parallel.shards import LocalParam


class Bucket(NamedTuple):
    """Parameters whose gradients are reduced together.

    Attributes:
        begin, end: Its first and last element in the buffer of its chunk; every rank has an equal share.
        filled: Where its last parameter ends.
        params: Each parameter's number in the module's order, and where it begins in the buffer.
    """

    begin: int
    end: int
    filled: int
    params: tuple[tuple[int, int], ...]


class Share(NamedTuple):
    """A flat range of a parameter, ``start`` to ``stop``, that lies ``at`` an element of a rank's share of a bucket."""

    number: int
    start: int
    stop: int
    at: int


class Run(NamedTuple):
    """Equal flat ranges of tensors: of one alone, or of experts that follow each other, whole and ``step`` apart.

    Attributes:
        key: Under which the tensor, or that of all experts, is stored.
        param: Its row of the parameter table.
        expert: The first, counted among those of its rank; None for a tensor that is no expert's.
        copies: How many experts.
        start, stop: The flat range of each.
        at: Where that of the first lies in the share.
        step: From each expert to the next.
    """

    key: str
    param: Param
    expert: int | None
    copies: int
    start: int
    stop: int
    at: int
    step: int


def optimizer_holders(plan: Plan) -> tuple[Holder, ...]:
    """What every rank updates: one buffer a bucket of each chunk, the share of it that is the rank's.

    Without the distributed optimizer that is all that the rank trains, a buffer a parameter.
    """
    parts = (part._replace(params=tuple(p for p in part.params if p.param.trains)) for part in parts_of(plan))
    if not plan.job.memory.distributed_optimizer:
        return holders_of(parts, plan.mesh)
    return tuple(holder for part in parts for holder in _part_holders(part, plan))


def plan_buckets(sizes: Sequence[int], alone: Sequence[bool], *, ranks: int, bucket: int | None) -> tuple[Bucket, ...]:
    """How a distributed optimizer lays out a chunk's parameters.

    Args:
        sizes: Elements of each parameter, in the module's order; the buffer is filled from the last one.
        alone: Which of them have a bucket of their own.
        ranks: That share each bucket.
        bucket: A bucket ends with the parameter that makes it this large; None puts all in one.

    Example:
        >>> plan_buckets([100, 60], [False, False], ranks=2, bucket=None)
        (Bucket(begin=0, end=256, filled=164, params=((1, 0), (0, 64))),)
    """
    buckets: list[Bucket] = []
    inside: list[tuple[int, int]] = []
    begin = position = 0

    def ended() -> None:
        nonlocal begin, position
        end = padded(position, lcm(ranks, BUCKET_ALIGNMENT))
        buckets.append(Bucket(begin, end, position, tuple(inside)))
        inside.clear()
        begin = position = end

    for number in reversed(range(len(sizes))):
        position = padded(position, PARAM_ALIGNMENT)
        if alone[number] and inside:
            ended()
        inside.append((number, position))
        position += sizes[number]
        if alone[number] or (bucket is not None and position - begin >= bucket):
            ended()
    if inside:
        ended()
    return tuple(buckets)


def shares_of(bucket: Bucket, sizes: Sequence[int], *, ranks: int) -> tuple[tuple[Share, ...], ...]:
    """What each rank has of a bucket.

    Example:
        >>> shares_of(Bucket(0, 256, 164, ((1, 0), (0, 64))), [100, 60], ranks=2)[1]
        (Share(number=0, start=64, stop=100, at=0),)
    """
    shares: tuple[list[Share], ...] = tuple([] for _ in range(ranks))
    size = (bucket.end - bucket.begin) // ranks
    for number, position in bucket.params:
        begin, stop = position - bucket.begin, position - bucket.begin + sizes[number]
        for rank in range(begin // size, ceil(stop / size)):
            low, high = max(begin, rank * size), min(stop, (rank + 1) * size)
            shares[rank].append(Share(number, low - begin, high - begin, low - rank * size))
    return tuple(map(tuple, shares))


def _part_holders(part: Part, plan: Plan) -> Iterator[Holder]:
    """The holders of a part: how it is shared out is the same wherever it lies, and told once."""
    count = len(part.places[0].ranks)
    two_embeddings = has_two_embeddings(plan.job.model, plan.stages)
    shares: list[tuple[str, int, list[tuple[Run, ...]]]] = []
    for chunk in range(plan.stages.vpp):
        params = in_module_order(param for param in part.params if param.chunk == chunk)
        sizes = [prod(param.local_shape) for param in params]
        alone = [two_embeddings and param.param.role == "embedding" for param in params]
        buckets = plan_buckets(sizes, alone, ranks=count, bucket=_bucket(plan, part, chunk))
        for number, bucket in enumerate(buckets):
            runs = [tuple(_runs(share, params)) for share in shares_of(bucket, sizes, ranks=count)]
            shares.append((f"{chunk}.bucket{number}", (bucket.end - bucket.begin) // count, runs))
    for name, ranks in part.places:
        laid = _laid_on(ranks[0], part.params, plan.mesh)
        for position, rank in enumerate(ranks):
            buffers = (Buffer(bucket, (size,), tuple(_pieces(runs[position], laid))) for bucket, size, runs in shares)
            yield Holder(f"{name} shard{position}", tuple(buffers), (rank,))


def _runs(shares: Iterable[Share], params: Sequence[LocalParam]) -> Iterator[Run]:
    """Shares, those of one tensor's experts together as long as they are whole and at equal steps."""
    open_: dict[str, Run] = {}
    for number, start, stop, at in shares:
        param = params[number]
        key = stored(param.fqn, param.param).key
        run = Run(key, param.param, param.expert, 1, start, stop, at, 0)
        if param.expert is None or stop - start < prod(param.local_shape):
            yield run
            continue
        if last := open_.get(key):
            step = last.at - at
            if last.expert == param.expert + 1 and last.step in (0, step):
                run = run._replace(copies=last.copies + 1, step=step)
            else:
                yield last
        open_[key] = run
    yield from open_.values()


def _laid_on(rank: int, params: Iterable[LocalParam], mesh: Mesh) -> dict[int, tuple[int, list[Laid]]]:
    """By row of the parameter table, the first of a rank's experts and where each of its tensors lies."""
    rows = {id(param.param): param for param in params}  # the plan's own rows, which outlive this
    ep_rank = expert_coords(rank, mesh).ep_rank
    return {
        row: (ep_rank * (held.param.experts // mesh.ep), laid_out(held.param, held.shard, rank, mesh))
        for row, held in rows.items()
    }


def _pieces(runs: Iterable[Run], table: dict[int, tuple[int, list[Laid]]]) -> Iterator[Piece]:
    """What runs are of stored tensors, on the rank whose table this is."""
    for key, param, expert, copies, start, stop, at, step in runs:
        first, boxes = table[id(param)]
        for box, begin, strides in boxes:
            low, high = max(start, begin), min(stop, begin + box.elements)
            if low >= high:
                continue
            laid = Laid(box, at + low - start, strides)
            if expert is not None:
                laid = stacked(laid, first + expert, copies, step)
            piece = Piece(key, laid.box, laid.start, laid.strides)
            if high - low == box.elements:
                yield piece
            else:
                yield from flat_pieces(piece, low - begin, high - begin, at=piece.start)


def _bucket(plan: Plan, part: Part, chunk: int) -> int | None:
    """The size at which a bucket ends; only the first stage has several."""
    if part.pp_rank or chunk or not plan.job.comm.overlap_grad_reduce:
        return None
    return bucket_elements(len(part.places[0].ranks))
