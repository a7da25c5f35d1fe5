"""What a rank holds of each stored tensor, and which of it the rank is the one to write.

A parameter of a rank is a few boxes of the whole, one after the other: so every flat range of it, such as the
distributed optimizer keeps, is a few boxes of the whole too. Padding of the vocabulary is no part of the whole, and
never stored.
"""

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush

import attrs

from ridgeline.checkpoint.boxes import Box, boxes_of_range, meeting, shifted, whole
from ridgeline.checkpoint.names import Stored, stored
from ridgeline.models.program import Owned, RankProgram


@attrs.frozen
class Fragment:
    """A box of a parameter, and where its elements lie in the rank's flattened part of it."""

    box: Box
    start: int


@attrs.frozen
class Holding:
    """One parameter of a rank.

    Attributes:
        owned: What it is, from the rank's program.
        place: Where the whole is stored.
        replicas: The ranks that hold the same part, in order.
        is_copy: It is the last stage's copy of the embedding, or a further etp rank's of what each holds whole:
            read, never written.
    """

    owned: Owned
    place: Stored
    replicas: tuple[int, ...]
    is_copy: bool

    @property
    def elements(self) -> int:
        """Elements of the rank's part, padding included."""
        return whole(self.owned.local.local_shape).elements


def holdings_of(program: RankProgram) -> tuple[Holding, ...]:
    """Every parameter of a rank, in the order of its program."""
    groups = dict(program.groups)
    return tuple(_holding(owned, program, groups) for owned in program.params)


def fragments_of(holding: Holding, start: int = 0, stop: int | None = None) -> Iterator[Fragment]:
    """The boxes that a flat range of a rank's parameter covers (by default all of it), each contiguous in the range."""
    stop = holding.elements if stop is None else stop
    real = whole(holding.owned.local.param.shape)
    begin = 0
    for interval in holding.owned.boxes:
        piece = Box(tuple(a for a, _ in interval), tuple(b - a for a, b in interval))
        first, last = max(start, begin), min(stop, begin + piece.elements)
        position = first
        for box in boxes_of_range(piece.shape, first - begin, last - begin):
            # Only rows at the end can be padding, so what is left of a box still begins where it began.
            if kept := meeting(shifted(box, piece.offset), real):
                yield Fragment(kept, position)
            position += box.elements
        begin += piece.elements


def written_by(rank: int, holdings: Sequence[Holding]) -> frozenset[int]:
    """Indices of the holdings that a rank is the one to write: each by one of its replicas, and all of them alike busy.

    Ranks that hold the same parts come to the same answer without asking each other.
    """
    by_replicas: dict[tuple[int, ...], list[int]] = {}
    for index, holding in enumerate(holdings):
        if not holding.is_copy:
            by_replicas.setdefault(holding.replicas, []).append(index)
    mine: set[int] = set()
    for replicas, indices in by_replicas.items():
        writers = balance([holdings[index].elements for index in indices], len(replicas))
        mine |= {index for index, writer in zip(indices, writers, strict=True) if replicas[writer] == rank}
    return frozenset(mine)


def writes_shards(program: RankProgram, holding: Holding) -> bool:
    """Whether a rank writes the shards that the distributed optimizer gives it of a parameter.

    Each dp rank updates a shard of its own, and those of all dp ranks make up the parameter; where tp ranks hold copies
    of it, the first one's are written.
    """
    local = holding.owned.local
    return not holding.is_copy and bool(local.shard.splits or local.param.experts or program.coords.tp_rank == 0)


def balance(sizes: Iterable[int], bins: int) -> list[int]:
    """Deal out pieces of given sizes, the largest first, each to the bin that holds least: the bin of each piece.

    Example:
        >>> balance([5, 9, 4, 1], 2)
        [1, 0, 1, 0]
    """
    sizes = list(sizes)
    loads = [(0, number) for number in range(bins)]
    heapify(loads)
    chosen = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        load, number = heappop(loads)
        chosen[index] = number
        heappush(loads, (load + sizes[index], number))
    return chosen


def _holding(owned: Owned, program: RankProgram, groups: dict[str, tuple[int, ...]]) -> Holding:
    local = owned.local
    is_copy = local.param.role == "embedding" and not program.chunks[local.chunk].pre_process
    if local.param.experts:
        replicas = groups["expt_dp"]
        is_copy = not local.shard.splits and program.expert_coords.etp_rank > 0
    else:
        replicas = groups["dp_cp" if local.shard.splits else "tp_dp_cp"]
    return Holding(
        owned=owned,
        place=stored(local.fqn, local.param),
        replicas=replicas,
        is_copy=is_copy,
    )
