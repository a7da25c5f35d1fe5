"""Boxes of tensors: cutting flat ranges into them, meeting of two, and whether some tile a whole.

A box is an offset and a shape inside a tensor, one entry per dim. Elements are numbered as they lie in memory, the
last dim fastest; a *flat range* is a run of those numbers.
"""

import math
from collections.abc import Iterable, Iterator
from operator import add, sub
from typing import NamedTuple

Shape = tuple[int, ...]


class Box(NamedTuple):
    """A part of a tensor: ``offset[d] <= index[d] < offset[d] + shape[d]`` on every dim ``d``."""

    offset: Shape
    shape: Shape

    @property
    def elements(self) -> int:
        """Elements inside."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return "[" + ", ".join(f"{o}:{o + n}" for o, n in zip(self.offset, self.shape, strict=True)) + "]"


def whole(shape: Shape) -> Box:
    """The box that is all of a tensor."""
    return Box((0,) * len(shape), shape)


def shifted(box: Box, offset: Shape) -> Box:
    """A box of a part, seen from the tensor that holds the part at ``offset``."""
    return Box(tuple(a + b for a, b in zip(box.offset, offset, strict=True)), box.shape)


def within(box: Box, outer: Box) -> Box:
    """A box of a tensor, seen from ``outer``, which must hold it."""
    return Box(tuple(a - b for a, b in zip(box.offset, outer.offset, strict=True)), box.shape)


def meeting(a: Box, b: Box) -> Box | None:
    """What two boxes of one tensor share, or None.

    Example:
        >>> str(meeting(Box((0, 2), (4, 4)), Box((3, 0), (4, 3))))
        '[3:4, 2:3]'
    """
    if a == b:
        return a
    first = tuple(map(max, a.offset, b.offset))
    stop = map(min, map(add, a.offset, a.shape), map(add, b.offset, b.shape))
    shape = tuple(map(sub, stop, first))
    return Box(first, shape) if min(shape, default=1) > 0 else None


def slices(box: Box) -> tuple[slice, ...]:
    """A box as an index of its tensor."""
    return tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))


def boxes_of_range(shape: Shape, start: int, stop: int) -> Iterator[Box]:
    """Cut a flat range of a tensor into boxes, in order: at most ``2 * len(shape) - 1`` of them.

    Each box is contiguous in memory, so a flat buffer that holds the range holds the boxes one after the other.

    Example:
        >>> [str(box) for box in boxes_of_range((3, 4), 2, 9)]
        ['[0:1, 2:4]', '[1:2, 0:4]', '[2:3, 0:1]']
    """
    if start >= stop:
        return
    if len(shape) <= 1:
        yield Box((start,) * len(shape), (stop - start,) * len(shape))
        return
    row = math.prod(shape[1:])
    first, head = divmod(start, row)
    last, tail = divmod(stop, row)
    if first == last:
        yield from _in_row(shape, first, head, tail)
        return
    if head:
        yield from _in_row(shape, first, head, row)
        first += 1
    if first < last:
        yield Box((first, *(0,) * (len(shape) - 1)), (last - first, *shape[1:]))
    yield from _in_row(shape, last, 0, tail)


def cut(box: Box, max_elements: int) -> Iterator[Box]:
    """Cut a box into boxes of at most ``max_elements``, in the order of memory."""
    for start in range(0, box.elements, max_elements):
        for part in boxes_of_range(box.shape, start, min(start + max_elements, box.elements)):
            yield shifted(part, box.offset)


def tiling_fault(shape: Shape, boxes: Iterable[Box]) -> str | None:
    """Why boxes do not hold each element of a tensor exactly once, in words; None when they do."""
    boxes = sorted(boxes, key=lambda box: box.offset)
    if any(meeting(box, whole(shape)) != box for box in boxes):
        return f"a part lies outside of {shape}"
    if overlap := _overlap(boxes):
        return f"parts {overlap[0]} and {overlap[1]} overlap"
    held, elements = sum(box.elements for box in boxes), math.prod(shape)
    return f"{elements - held} of {elements} elements are missing" if held != elements else None


def _in_row(shape: Shape, index: int, start: int, stop: int) -> Iterator[Box]:
    for box in boxes_of_range(shape[1:], start, stop):
        yield Box((index, *box.offset), (1, *box.shape))


def _overlap(boxes: list[Box]) -> tuple[Box, Box] | None:
    """Two boxes that meet, of some sorted by offset: a sweep over dim 0 that keeps those still open."""
    open_: list[Box] = []
    for box in boxes:
        if not box.shape:
            if open_:
                return open_[0], box
            open_.append(box)
            continue
        open_ = [other for other in open_ if other.offset[0] + other.shape[0] > box.offset[0]]
        for other in open_:
            if meeting(other, box):
                return other, box
        open_.append(box)
    return None
