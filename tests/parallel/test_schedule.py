"""Actions and schedules are text that parses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.errors import SpecError
from ridgeline.parallel.actions import KINDS, Action, parse_action
from ridgeline.parallel.schedule import Schedule, parse_schedule
from ridgeline.parallel.schedules.dualpipe import dualpipe_v
from tests.parallel.any_schedule import any_schedule

QUIET = settings(deadline=None, max_examples=60, database=None)


@given(st.builds(Action, st.integers(0, 300), st.sampled_from(sorted(KINDS)), st.integers(0, 5000)))
def test_action_is_its_text(action: Action) -> None:
    """Printing and parsing an action is the identity."""
    assert parse_action(str(action)) == action


@QUIET
@given(any_schedule())
def test_schedule_is_its_text(schedule: Schedule) -> None:
    """Printing and parsing a schedule is the identity."""
    assert parse_schedule(str(schedule), name=schedule.name) == schedule


@QUIET
@given(st.integers(2, 6), st.integers(0, 5), st.booleans())
def test_pairs_are_in_the_text(pp: int, more: int, split: bool) -> None:
    """A pair prints as one word and is read as two actions that run together."""
    schedule = dualpipe_v(pp=pp, num_microbatches=2 * pp + more, split_cooldown=split)
    assert parse_schedule(str(schedule), name=schedule.name) == schedule
    assert str(schedule).count("+") == sum(map(len, schedule.pairs))


@pytest.mark.parametrize("text", ["", "F0", "2X0", "2f0", "-1F0", "2F", "2F0 ", "2F0 3F0", "٢F0"])
def test_other_text_is_no_action(text: str) -> None:
    """Anything else is refused by name."""
    with pytest.raises(SpecError, match=rf"action='{text}': must read stage, kind, microbatch, as '2F0'"):
        parse_action(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "schedule='': holds no action"),
        ("0: 0F0\n1: 2F0", "has 3 stages, no multiple of its 2 ranks"),
        ("0: 0F0 0Q0", "action='0Q0'"),
    ],
)
def test_other_text_is_no_schedule(text: str, line: str) -> None:
    """A line for each rank, words that are actions, and a whole number of chunks."""
    with pytest.raises(SpecError, match=line):
        parse_schedule(text, name="mine")
