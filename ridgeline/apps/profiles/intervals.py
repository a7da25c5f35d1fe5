"""Spans of time: their union, and what two unions share."""

from collections.abc import Iterable

Span = tuple[float, float]
"""From, to."""


def union(spans: Iterable[Span]) -> list[Span]:
    """The same times as spans that do not touch, in order.

    Example:
        >>> union([(5, 6), (0, 2), (1, 3)])
        [(0, 3), (5, 6)]
    """
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def within(spans: Iterable[Span], bounds: Span) -> list[Span]:
    """The parts of spans inside bounds."""
    low, high = bounds
    return [(max(begin, low), min(end, high)) for begin, end in spans if begin < high and end > low]


def length(spans: Iterable[Span]) -> float:
    """Of spans that do not touch."""
    return sum(end - begin for begin, end in spans)
