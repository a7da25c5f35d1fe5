"""Two actions timed in turn, and the median of the ratios of their times."""

import statistics
import time
from collections.abc import Callable

import attrs


@attrs.frozen
class Comparison:
    """Seconds of each action, and second over first: the median, and the quartiles around it."""

    first_s: float
    second_s: float
    ratio: float
    quartiles: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.quartiles
        spread = f"quartiles {low:.3f} to {high:.3f}"
        return f"{self.first_s:.4f} s and {self.second_s:.4f} s: ratio {self.ratio:.3f} ({spread})"


def compare(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    pairs: int = 12,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time the two in interleaved pairs, swapping which goes first from pair to pair."""
    for _ in range(warmup):
        first()
        second()
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            begin = clock()
            (first, second)[which]()
            times[which].append(clock() - begin)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    quarters = statistics.quantiles(ratios, n=4)
    return Comparison(
        statistics.median(times[0]), statistics.median(times[1]), statistics.median(ratios), (quarters[0], quarters[2])
    )
