"""The algebra of boxes, against numpy index grids."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.checkpoint.boxes import Box, boxes_of_range, cut, meeting, shifted, tiling_fault, whole, within

shapes = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


def slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))


@st.composite
def boxes_in(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    offset = tuple(draw(st.integers(0, n - 1)) for n in shape)
    return Box(offset, tuple(draw(st.integers(1, n - o)) for o, n in zip(offset, shape, strict=True)))


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = draw(shapes)
    start = draw(st.integers(0, math.prod(shape)))
    return shape, start, draw(st.integers(start, math.prod(shape)))


@settings(deadline=None)
@given(ranges())
def test_a_range_is_its_boxes_in_order(case: tuple[tuple[int, ...], int, int]) -> None:
    """The boxes of a range hold its elements, in its order, and are few."""
    shape, start, stop = case
    grid = np.arange(math.prod(shape)).reshape(shape)

    boxes = list(boxes_of_range(shape, start, stop))

    assert [n for box in boxes for n in grid[slices(box)].ravel()] == list(range(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@settings(deadline=None)
@given(shapes.flatmap(lambda shape: st.tuples(st.just(shape), boxes_in(shape), boxes_in(shape))))
def test_meeting_is_the_common_elements(case: tuple[tuple[int, ...], Box, Box]) -> None:
    """Two boxes share what their masks share, and each sees its share at the right place."""
    shape, a, b = case
    masks = np.zeros((2, *shape), dtype=bool)
    masks[(0, *slices(a))] = masks[(1, *slices(b))] = True

    shared = meeting(a, b)

    expected = np.zeros(shape, dtype=bool)
    if shared:
        expected[slices(shared)] = True
        assert shifted(within(shared, a), a.offset) == shared
    assert (expected == (masks[0] & masks[1])).all()


@settings(deadline=None)
@given(shapes.flatmap(lambda shape: st.tuples(st.just(shape), st.integers(1, 40))))
def test_cut_tiles(case: tuple[tuple[int, ...], int]) -> None:
    """Cut pieces are small and tile the box."""
    shape, limit = case
    pieces = list(cut(whole(shape), limit))
    assert max(piece.elements for piece in pieces) <= limit
    assert tiling_fault(shape, pieces) is None


@settings(deadline=None)
@given(shapes.flatmap(lambda shape: st.tuples(st.just(shape), st.lists(boxes_in(shape), max_size=4))))
def test_tiling_is_counted_element_by_element(case: tuple[tuple[int, ...], list[Box]]) -> None:
    """Boxes tile a tensor when each of its elements is in exactly one."""
    shape, boxes = case
    count = np.zeros(shape, dtype=int)
    for box in boxes:
        count[slices(box)] += 1
    assert (tiling_fault(shape, boxes) is None) == bool((count == 1).all())


@pytest.mark.parametrize(
    ("boxes", "fault"),
    [
        ([Box((0, 0), (2, 3))], "6 of 12 elements are missing"),
        ([Box((0, 0), (4, 3)), Box((3, 1), (1, 1))], "parts [0:4, 0:3] and [3:4, 1:2] overlap"),
        ([Box((0, 0), (5, 3))], "a part lies outside of (4, 3)"),
    ],
)
def test_faults_are_told(boxes: list[Box], fault: str) -> None:
    """The fault of a tiling names the parts."""
    assert tiling_fault((4, 3), boxes) == fault
