"""Which positions of a sample each cp rank computes."""

from collections.abc import Iterator
from typing import TypeAlias

from ridgeline.core.layout import Layout

Pieces: TypeAlias = tuple[tuple[int, int], ...]
"""Ranges of positions, begin and end, in order."""


def context_pieces(layout: Layout, cp_rank: int, *, seq_len: int) -> Pieces:
    """The positions of a sample that a cp rank computes.

    Under ``ulysses`` one range. Elsewhere keys and values travel, and the rank of the last range would have the most to
    do, since its queries see the most: samples are cut in twice as many parts, and each rank has one from either end.
    Of ranks that exchange heads each has a range of those two.

    Args:
        layout: Its degree and algorithm.
        cp_rank: 0 <= cp_rank < cp.
        seq_len: Positions of a sample, a multiple of cp, or of 2*cp where keys and values travel.

    Source:
        megatron-core 0.16.1, utils.py, ``get_batch_on_this_cp_rank``; Ascend/MindSpeed-LLM 2.0.0, training/utils.py,
        ``_get_batch_on_this_cp_rank_in_hybrid_cp``.

    Example:
        >>> context_pieces(Layout(cp=2, cp_algorithm="ulysses"), 1, seq_len=16)
        ((8, 16),)
        >>> context_pieces(Layout(cp=2), 0, seq_len=16)
        ((0, 4), (12, 16))
        >>> context_pieces(Layout(cp=4, cp_algorithm="hybrid", ulysses=2), 1, seq_len=16)
        ((12, 16),)
    """
    if layout.cp_algorithm == "ulysses" or layout.cp == 1:
        size = seq_len // layout.cp
        return ((cp_rank * size, (cp_rank + 1) * size),)
    ring = layout.cp // layout.ulysses
    part = seq_len // (2 * ring)
    ring_rank, inner_rank = divmod(cp_rank, layout.ulysses)
    size = 2 * part // layout.ulysses
    return tuple(_between((ring_rank, 2 * ring - 1 - ring_rank), part, inner_rank * size, (inner_rank + 1) * size))


def _between(parts: tuple[int, ...], size: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """What of parts of a size, laid end to end, lies between two places."""
    for place, part in enumerate(parts):
        first, last = max(begin, place * size), min(end, (place + 1) * size)
        if first < last:
            moved = (part - place) * size
            yield first + moved, last + moved
