"""Documents packed into samples, as lengths."""

import itertools
from collections.abc import Iterable


def document_lengths(edges: Iterable[int], *, size: int, samples: int) -> list[int]:
    """The length of every document, which a sample's edge ends in any case.

    Args:
        edges: Where documents begin, and the last one's end, counted over ``samples`` of ``size`` tokens each.
        size: Tokens of a sample.
        samples: One after the other.

    Example:
        >>> document_lengths([0, 3, 10, 16], size=8, samples=2)
        [3, 5, 2, 6]
    """
    ordered = sorted({*edges, *range(0, size * samples + 1, size)})
    assert ordered[0] == 0, ordered
    assert ordered[-1] == size * samples, ordered
    return [end - begin for begin, end in itertools.pairwise(ordered)]
