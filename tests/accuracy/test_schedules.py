"""What a schedule keeps in flight is what others measured of it."""

from tests.accuracy.errors import quantile
from tests.accuracy.schedules import SCHEDULES, peaks


def test_peaks_are_within_five_percent() -> None:
    """The median; nine of ten within twelve."""
    found = peaks()
    assert {one.schedule for one in found} == set(SCHEDULES)
    errors = [abs(one.error) for one in found]
    assert quantile(errors, 0.5) <= 0.05
    assert quantile(errors, 0.9) <= 0.12
