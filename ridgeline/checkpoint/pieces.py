"""Where the elements of tensors lie in flat memory: the one description that every format and layout shares.

A *piece* is a box of a stored tensor (``names.py``: all experts of a layer are one) and the place of its elements:
element ``i`` of the box stands at ``start + sum(i[d] * strides[d])`` of a buffer, counted in elements. Rows of a larger
tensor, a transposed expert inside a packed one, experts that follow each other backwards in a distributed optimizer's
buffer and the flat range that it cut off are all pieces, and every part of a piece is one.

    holder    a file or a group of ranks that keep the same: it holds buffers
    buffer    one tensor as stored: a name, a shape, and the pieces it is made of
    piece     a box of a stored tensor, at a start and with strides in its buffer
"""

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from operator import add, mul, sub
from typing import NamedTuple

from ridgeline.checkpoint.boxes import Box, Shape, boxes_of_range


class Piece(NamedTuple):
    """A box of the tensor stored under this key, and where its elements lie."""

    key: str
    box: Box
    start: int
    strides: Shape


class Buffer(NamedTuple):
    """One tensor as a file or a rank keeps it.

    Attributes:
        name: Within its holder.
        shape: As it is stored, in elements; row-major.
        pieces: What it is made of, no two of them meeting.
        padding: Rows that repeat others to round up the vocabulary: written, never read.
    """

    name: str
    shape: Shape
    pieces: tuple[Piece, ...]
    padding: tuple[Piece, ...] = ()

    @property
    def elements(self) -> int:
        """Elements in all."""
        return prod(self.shape)


class Holder(NamedTuple):
    """Buffers that are kept together: a file, or what some ranks hold alike."""

    name: str
    buffers: tuple[Buffer, ...]
    ranks: tuple[int, ...] = ()


def row_major(shape: Shape) -> Shape:
    """The strides of a tensor whose last dim varies fastest.

    Example:
        >>> row_major((2, 3, 4))
        (12, 4, 1)
    """
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def piece_of(key: str, box: Box, *, shape: Shape, at: Shape) -> Piece:
    """A box of a tensor that lies as it is in a row-major buffer of ``shape``, its first element at ``at``.

    The buffer may have more dims than the box, which then lies in the last ones.

    Example:
        >>> piece_of("w", Box((0, 0), (2, 3)), shape=(4, 5, 6), at=(1, 2, 3))
        Piece(key='w', box=Box(offset=(0, 0), shape=(2, 3)), start=45, strides=(6, 1))
    """
    strides = row_major(shape)
    start = sum(a * stride for a, stride in zip(at, strides, strict=True))
    return Piece(key, box, start, strides[len(strides) - len(box.shape) :])


def transposed_piece(key: str, box: Box, *, shape: Shape, at: Shape) -> Piece:
    """The same of a matrix that lies transposed: its column ``j`` is row ``at[-2] + j`` of the buffer's last two dims.

    Example:
        >>> transposed_piece("w", Box((0, 0), (2, 3)), shape=(3, 8), at=(0, 4))
        Piece(key='w', box=Box(offset=(0, 0), shape=(2, 3)), start=4, strides=(1, 8))
    """
    piece = piece_of(key, box, shape=shape, at=at)
    return piece._replace(strides=(piece.strides[1], piece.strides[0]))


def start_of(piece: Piece, box: Box) -> int:
    """Where the first element of a box lies that a piece of the same tensor holds; its strides are the piece's."""
    if box.offset == piece.box.offset:
        return piece.start
    return piece.start + sum(map(mul, map(sub, box.offset, piece.box.offset), piece.strides))


def flat_pieces(piece: Piece, start: int, stop: int, *, at: int = 0) -> Iterator[Piece]:
    """The pieces of a flat range of a row-major piece, as they lie one behind the other from ``at`` of a buffer."""
    position, offset = at, piece.box.offset
    for box in boxes_of_range(piece.box.shape, start, stop):
        yield Piece(piece.key, Box(tuple(map(add, offset, box.offset)), box.shape), position, row_major(box.shape))
        position += prod(box.shape)


def indices(piece: Piece) -> Iterator[int]:
    """Where every element of a piece lies, in the order of its box: for tests and small tensors."""
    positions: Sequence[int] = [piece.start]
    for size, stride in zip(piece.box.shape, piece.strides, strict=True):
        positions = [position + index * stride for position in positions for index in range(size)]
    return iter(positions)


def filling_fault(buffer: Buffer) -> str | None:
    """Why pieces and padding do not fill a buffer exactly once, in words; None when they do.

    It counts elements and looks at the ends, which is quick; that no two pieces meet is what tests prove.
    """
    parts = (*buffer.pieces, *buffer.padding)
    filled = sum(part.box.elements for part in parts)
    if filled != buffer.elements:
        return f"{filled} of {buffer.elements} elements are filled"
    beyond = [part for part in parts if part.box.elements and not 0 <= part.start <= _last(part) < buffer.elements]
    return f"{beyond[0].key}{beyond[0].box} lies outside of {buffer.shape}" if beyond else None


def by_key(holders: Iterable[Holder]) -> dict[str, list[tuple[str, str, Piece]]]:
    """Every piece, with the names of its holder and buffer, under the key of its tensor."""
    found: dict[str, list[tuple[str, str, Piece]]] = {}
    for holder in holders:
        for buffer in holder.buffers:
            for piece in buffer.pieces:
                found.setdefault(piece.key, []).append((holder.name, buffer.name, piece))
    return found


def _last(piece: Piece) -> int:
    return piece.start + sum((n - 1) * stride for n, stride in zip(piece.box.shape, piece.strides, strict=True))
