"""Which keys a query sees, as data.

Queries are the last of the keys' positions: of ``s`` queries and ``t`` keys, query i stands at position i + t - s.
"""

import attrs


@attrs.frozen
class Band:
    """The keys from ``before`` positions before the query to ``after`` positions after it; None sets no bound.

    Example:
        >>> Band(2, 0).sees(query=5, key=3), Band(2, 0).sees(query=5, key=2)
        (True, False)
    """

    before: int | None
    after: int | None

    def sees(self, *, query: int, key: int) -> bool:
        """Whether a query sees a key, by their positions."""
        return (self.before is None or query - key <= self.before) and (self.after is None or key - query <= self.after)


@attrs.frozen
class Prefix:
    """The query itself and what is before it, and of every sequence its first ``lengths[i]`` keys."""

    lengths: tuple[int, ...]


FULL = Band(None, None)
CAUSAL = Band(None, 0)


def window(size: int) -> Band:
    """The last ``size`` positions, the query's own included."""
    return Band(size - 1, 0)
