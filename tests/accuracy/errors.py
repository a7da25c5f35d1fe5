"""Errors of predictions and what they come to."""

from collections.abc import Sequence
from statistics import median


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed.

    Example:
        >>> quantile([3.0, 1.0, 2.0, 4.0], 0.9)
        4.0
    """
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, -int(-share * len(ranked) // 1) - 1)]


def summary(errors: Sequence[float]) -> str:
    """Median and 90th percentile of the absolute errors, and how many are low, in words."""
    if not errors:
        return "no rows"
    sizes = [abs(error) for error in errors]
    low = sum(error < 0 for error in errors)
    return f"{len(errors)} rows: median {median(sizes):.1%}, 90th percentile {quantile(sizes, 0.9):.1%}, {low} low"
