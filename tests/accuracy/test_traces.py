"""Kept traces of large jobs' ranks agree with the plans of today."""

import pytest

from tests.accuracy.traces import Row, rows, section

WITHIN = 0.02
"""Of live bytes: a plan bounds what an operation takes, not each of its moments."""


@pytest.fixture(scope="module", params=range(len(list(rows()))))
def row(request: pytest.FixtureRequest) -> Row:
    return list(rows())[request.param]


def test_live_bytes_agree(row: Row) -> None:
    """At the peak of the step, at every action's own, and exactly in what stays."""
    comparison = row.comparison
    assert abs(comparison.error) <= WITHIN
    for point, traced in comparison.actions:
        assert point.total_bytes == pytest.approx(traced.peak_bytes, rel=WITHIN), traced
    for one in comparison.memory[:-1]:
        assert one.planned == pytest.approx(one.traced, rel=0.001), one


def test_collectives_are_as_planned(row: Row) -> None:
    """Every kind, group, size and count of a step's."""
    assert row.comparison.differing == ()


def test_the_page_has_a_line_for_each() -> None:
    lines = section()
    assert all(any(row.tokens in line for line in lines) for row in rows())
