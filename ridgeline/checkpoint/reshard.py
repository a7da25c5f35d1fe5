"""From any layout to any layout: a list of slice copies that writes each destination element exactly once.

    reshard(source, destination) -> ReshardPlan    pure

Both sides are holders of buffers (``pieces.py``): the files of a format, or the ranks of a job. What the copies move is
decided by boxes of stored tensors alone, so that every format meets every other one here and nowhere else.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from math import prod
from typing import NamedTuple

import attrs

from ridgeline.checkpoint.boxes import Box, Shape, meeting
from ridgeline.checkpoint.pieces import Buffer, Holder, Piece, by_key, start_of
from ridgeline.core.errors import CheckpointError


class SliceCopy(NamedTuple):
    """Equal boxes of two buffers: ``shape`` elements, from ``source_start`` by ``source_strides`` to ``start``."""

    holder: str
    buffer: str
    source_start: int
    source_strides: Shape
    start: int
    strides: Shape
    shape: Shape


class Fill(NamedTuple):
    """One destination buffer and the copies that fill it."""

    holder: str
    buffer: Buffer
    copies: tuple[SliceCopy, ...]


@attrs.frozen
class ReshardPlan:
    """Every destination buffer, in order, and the copies that fill it."""

    fills: tuple[Fill, ...]

    @property
    def copies(self) -> int:
        """Slice copies in all."""
        return sum(len(fill.copies) for fill in self.fills)

    def __str__(self) -> str:
        """A line for each copy, under the buffer that it fills."""
        return "\n".join(line for fill in self.fills for line in _lines(fill))


class Source(NamedTuple):
    """The pieces of one tensor, sorted by first row.

    Attributes:
        pieces: Each with its holder and buffer.
        first: The first row of each.
        reach: The last row that any piece up to and including it holds.
    """

    pieces: tuple[tuple[str, str, Piece], ...]
    first: tuple[int, ...]
    reach: tuple[int, ...]


def reshard(source: Iterable[Holder], destination: Iterable[Holder]) -> ReshardPlan:
    """Plan the copies from one set of holders to another.

    Where several source holders keep the same box, a destination takes it from the one of its own name, else from the
    first.

    Raises:
        CheckpointError: The source lacks elements that the destination needs; the tensors are named.
    """
    sources = sources_of(source)
    fills, missing = [], []
    for holder in destination:
        for buffer in holder.buffers:
            copies: list[SliceCopy] = []
            for piece in (*buffer.pieces, *buffer.padding):
                found = list(copies_into(piece, sources, holder.name))
                copies += found
                held = sum([prod(copy.shape) for copy in found])
                if held != piece.box.elements:
                    missing.append(f"  {piece.key}{piece.box}: {piece.box.elements - held} elements have no source")
            fills.append(Fill(holder.name, buffer, tuple(copies)))
    if missing:
        raise CheckpointError("\n".join(("the source does not hold all that is needed:", *missing)))
    return ReshardPlan(tuple(fills))


def sources_of(holders: Iterable[Holder]) -> Mapping[str, Source]:
    """The pieces of each tensor, ready to be searched; of pieces that repeat a box, all are kept, side by side."""
    return {key: _sorted(pieces) for key, pieces in by_key(holders).items()}


def copies_into(piece: Piece, sources: Mapping[str, Source], holder: str = "") -> Iterator[SliceCopy]:
    """The copies that fill one piece, as far as there are sources for it."""
    for shared, (name, buffer, held) in meetings(piece, sources, holder):
        origin, target = start_of(held, shared), start_of(piece, shared)
        yield SliceCopy(name, buffer, origin, held.strides, target, piece.strides, shared.shape)


def meetings(
    piece: Piece, sources: Mapping[str, Source], holder: str = ""
) -> Iterator[tuple[Box, tuple[str, str, Piece]]]:
    """What source pieces hold of a piece's box, each box once: of this holder where it holds it, else of the first."""
    source, box = sources.get(piece.key), piece.box
    if source is None:
        return
    begin, end = 0, 1
    if box.shape:
        begin = bisect_left(source.reach, box.offset[0] + 1)
        end = bisect_left(source.first, box.offset[0] + box.shape[0])
    candidates = source.pieces[begin:end]
    for held in candidates if len(candidates) == 1 else _each_once(candidates, holder):
        shared = meeting(held[2].box, box)
        if shared is not None:
            yield shared, held


def _each_once(candidates: Iterable[tuple[str, str, Piece]], holder: str) -> Iterable[tuple[str, str, Piece]]:
    """One of the pieces that repeat a box: this holder's, else the first."""
    taken: dict[Box, tuple[str, str, Piece]] = {}
    for candidate in candidates:
        box = candidate[2].box
        if box not in taken or candidate[0] == holder:
            taken[box] = candidate
    return taken.values()


def _sorted(pieces: list[tuple[str, str, Piece]]) -> Source:
    if pieces[0][2].box.shape:
        pieces = sorted(pieces, key=lambda found: found[2].box.offset)
        first = tuple(piece.box.offset[0] for _, _, piece in pieces)
        reach = accumulate((piece.box.offset[0] + piece.box.shape[0] for _, _, piece in pieces), max)
        return Source(tuple(pieces), first, tuple(reach))
    return Source(tuple(pieces), (0,) * len(pieces), (1,) * len(pieces))


def _lines(fill: Fill) -> Iterator[str]:
    yield f"{fill.holder}: {fill.buffer.name} {fill.buffer.shape}"
    for copy in fill.copies:
        yield (
            f"  {copy.shape} at {copy.start} by {copy.strides}"
            f" from {copy.holder}: {copy.buffer} at {copy.source_start} by {copy.source_strides}"
        )
