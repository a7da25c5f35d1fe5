"""What the ranks of a job hold, as holders of buffers.

Ranks that hold the same are one holder: a dense one for each (tp_rank, pp_rank), an expert one for each (etp_rank,
ep_rank, pp_rank). cp and dp replicate weights. All that ranks of one pp_rank differ in is where their parts lie, so
what they hold is told once.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, product
from math import prod
from typing import NamedTuple

from ridgeline.checkpoint.boxes import Box, Shape, meeting, whole, within
from ridgeline.checkpoint.names import stored
from ridgeline.checkpoint.pieces import Buffer, Holder, Piece, piece_of
from ridgeline.core.params import Param
from ridgeline.parallel.mesh import ExpertCoords, Mesh, RankCoords, expert_coords, group_of, rank_of
from ridgeline.parallel.plan import Plan
from ridgeline.parallel.shards import Box as Intervals
from ridgeline.parallel.shards import LocalParam, Shard, experts_of, local_shape, rank_params, slices_of


class Place(NamedTuple):
    """Ranks that hold the same: a name, and their numbers."""

    name: str
    ranks: tuple[int, ...]


class Part(NamedTuple):
    """The dense parameters of a pp_rank, or its experts.

    Attributes:
        pp_rank: Of all its ranks.
        params: As the first of them holds them.
        places: Where other parts of the same tensors lie.
    """

    pp_rank: int
    params: tuple[LocalParam, ...]
    places: tuple[Place, ...]


class Stack(NamedTuple):
    """A tensor that ranks hold, or equal ones of experts that follow each other.

    Attributes:
        name: Of the buffer, without the numbers of experts.
        key: Under which it is stored.
        param: Its row of the parameter table.
        shard: How it lies on the mesh.
        shape: Of each, on a rank.
        expert: The first, counted among those of its rank; None for a tensor that is no expert's.
        copies: How many there are.
    """

    name: str
    key: str
    param: Param
    shard: Shard
    shape: Shape
    expert: int | None
    copies: int

    @property
    def elements(self) -> int:
        """Elements in all, on a rank."""
        return self.copies * prod(self.shape)


class Laid(NamedTuple):
    """A box of a parameter, and where it lies in a rank's tensor."""

    box: Box
    start: int
    strides: Shape


def weight_holders(plan: Plan) -> tuple[Holder, ...]:
    """The weights of every rank of a job, those that hold the same together.

    Padding of the vocabulary is no part of it: it keeps what the rank holds.
    """
    return holders_of(parts_of(plan), plan.mesh)


def holders_of(parts: Iterable[Part], mesh: Mesh) -> tuple[Holder, ...]:
    """What the places of each part hold, a buffer a tensor."""
    holders = []
    for part in parts:
        stacks = stacks_of(part.params, part.places[0].ranks[0], mesh)
        holders += [
            Holder(place.name, tuple(buffers_of(stacks, place.ranks[0], mesh)), place.ranks) for place in part.places
        ]
    return tuple(holders)


def parts_of(plan: Plan) -> Iterator[Part]:
    """The dense parameters of each pp_rank, then the experts of each."""
    mesh = plan.mesh
    dense = [
        [RankCoords(tp_rank=tp_rank, cp_rank=0, dp_rank=0, pp_rank=pp_rank) for tp_rank in range(mesh.tp)]
        for pp_rank in range(mesh.pp)
    ]
    for pp_rank, coords in enumerate(dense):
        places = tuple(
            Place(f"tp{each.tp_rank} pp{pp_rank}", group_of(rank_of(each, mesh), mesh, "dp-cp")) for each in coords
        )
        held = rank_params(plan, places[0].ranks[0])
        yield Part(pp_rank, tuple(param for param in held if not param.param.experts), places)
    if not any(row.param.experts for row in plan.shards):
        return
    for pp_rank in range(mesh.pp):
        coords = [
            ExpertCoords(etp_rank=etp_rank, ep_rank=ep_rank, edp_rank=0, pp_rank=pp_rank)
            for ep_rank, etp_rank in product(range(mesh.ep), range(mesh.etp))
        ]
        places = tuple(
            Place(f"etp{each.etp_rank} ep{each.ep_rank} pp{pp_rank}", group_of(rank_of(each, mesh), mesh, "edp"))
            for each in coords
        )
        held = rank_params(plan, places[0].ranks[0])
        yield Part(pp_rank, tuple(param for param in held if param.param.experts), places)


def rank_buffers(params: Iterable[LocalParam], rank: int, mesh: Mesh) -> list[Buffer]:
    """The parameters of a rank as buffers, row-major, the boxes of each one after the other.

    Experts that follow each other are one buffer, whose first dim counts them.
    """
    return buffers_of(stacks_of(params, rank, mesh), rank, mesh)


def stacks_of(params: Iterable[LocalParam], rank: int, mesh: Mesh) -> list[Stack]:
    """The parameters of a rank, experts that follow each other as one."""
    coords = expert_coords(rank, mesh)
    stacks = []
    for name, run in groupby(params, key=_stacked_name):
        first, *others = run
        own = None if first.expert is None else first.expert - experts_of(first.param.experts, coords, mesh).start
        key = stored(first.fqn, first.param).key
        stacks.append(Stack(name, key, first.param, first.shard, first.local_shape, own, 1 + len(others)))
    return stacks


def buffers_of(stacks: Sequence[Stack], rank: int, mesh: Mesh) -> list[Buffer]:
    """What a rank holds of each stack; equal layers are laid out once."""
    ep_rank = expert_coords(rank, mesh).ep_rank
    known: dict[int, list[Laid]] = {}
    buffers = []
    for stack in stacks:
        name, shape, row = stack.name, stack.shape, id(stack.param)
        if row not in known:  # rows of the plan, which outlives the table
            known[row] = laid_out(stack.param, stack.shard, rank, mesh)
        laid = known[row]
        if stack.expert is not None:
            first = stack.expert + ep_rank * (stack.param.experts // mesh.ep)
            laid = [stacked(each, first, stack.copies, prod(shape)) for each in laid]
            name, shape = f"{name}[{first}:{first + stack.copies}]", (stack.copies, *shape)
        pieces = tuple([Piece(stack.key, box, start, strides) for box, start, strides in laid])
        buffers.append(Buffer(name, shape, pieces))
    return buffers


def laid_out(param: Param, shard: Shard, rank: int, mesh: Mesh) -> list[Laid]:
    """Each box of a parameter that a rank holds, without padding; boxes that touch are one."""
    boxes = list(_joined(slices_of(shard, rank, mesh)))
    starts, shape = [], local_shape(shard, mesh)
    for intervals in zip(*boxes, strict=True):
        position, known = 0, {}
        for interval in intervals:
            if interval not in known:
                known[interval] = position
                position += interval[1] - interval[0]
        starts.append(known)
    laid = []
    for intervals in boxes:
        box = Box(tuple(a for a, _ in intervals), tuple(b - a for a, b in intervals))
        at = tuple(known[interval] for known, interval in zip(starts, intervals, strict=True))
        if (real := meeting(box, whole(param.shape))) is not None:
            inner = within(real, box).offset
            piece = piece_of("", real, shape=shape, at=tuple(a + b for a, b in zip(at, inner, strict=True)))
            laid.append(Laid(real, piece.start, piece.strides))
    return laid


def stacked(laid: Laid, first: int, copies: int, step: int) -> Laid:
    """The same box of each of several experts, the ``first`` and those after it, ``step`` elements apart."""
    box, start, strides = laid
    return Laid(Box((first, *box.offset), (copies, *box.shape)), start, (step, *strides))


def _stacked_name(param: LocalParam) -> str:
    """The name of a rank's buffer: chunk and name, an expert's without its number."""
    if param.expert is None:
        return f"{param.chunk}.{param.name}"
    return f"{param.chunk}.{stored(param.name, param.param).key}"


def _joined(boxes: Iterable[Intervals]) -> Iterator[Intervals]:
    """Boxes that lie one after the other, those that touch along their one dim that differs as one."""
    last: Intervals | None = None
    for box in boxes:
        differing = [dim for dim, pair in enumerate(zip(last or (), box, strict=False)) if pair[0] != pair[1]]
        if last is not None and len(differing) == 1 and last[dim := differing[0]][1] == box[dim][0]:
            last = (*box[:dim], (last[dim][0], box[dim][1]), *box[dim + 1 :])
        else:
            if last is not None:
                yield last
            last = box
    if last is not None:
        yield last
