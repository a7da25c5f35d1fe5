"""Round numbers along an axis."""

from math import ceil, floor, log10


def ticks(most: float, *, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from 0 to ``most``, around so many.

    Example:
        >>> ticks(64, about=8)
        [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    """
    rough = most / about
    power = 10.0 ** floor(log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs(step - rough))
    return [step * index for index in range(floor(most / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last at or below one number to the first at or above another.

    Example:
        >>> log_ticks(30, 700)
        [20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
    """
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    steps = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(index for index, step in enumerate(steps) if step <= low)
    last = min(index for index, step in enumerate(steps) if step >= high)
    return steps[first : last + 1]
