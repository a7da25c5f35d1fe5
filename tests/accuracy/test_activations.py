"""Planned activations are those of the paper that first wrote them down."""

import pytest

from tests.accuracy.activations import published


@pytest.mark.parametrize(("unit", "rows"), [("GiB", 8), ("%", 20)])
def test_activations_are_within_three_percent(unit, rows):
    found = [one for one in published() if one.unit == unit]
    assert len(found) == rows
    assert max(abs(one.error) for one in found) <= 0.03
