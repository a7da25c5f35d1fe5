"""The validator accepts what runs, and shows what does not."""

import random
import re

import attrs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ridgeline.core.errors import PlanError
from ridgeline.parallel.schedule import Schedule, forward_only, parse_schedule
from ridgeline.parallel.simulate import peak_in_flight
from ridgeline.parallel.validate import check_schedule
from tests.parallel.any_schedule import any_schedule

QUIET = settings(deadline=None, max_examples=80, database=None)


@QUIET
@given(any_schedule())
def test_what_runs_is_accepted(schedule: Schedule) -> None:
    """Any order in which the actions could really be executed is a schedule, and so are its forwards."""
    check_schedule(schedule)
    check_schedule(forward_only(schedule), evaluation=True)


@QUIET
@given(any_schedule(), st.randoms(use_true_random=False), st.sampled_from(("drop", "double", "move", "rename")))
def test_one_wrong_action_is_refused(schedule: Schedule, dice: random.Random, fault: str) -> None:
    """Dropping, doubling or renaming any action, or giving it to another rank, makes it no schedule."""
    ranks = [list(actions) for actions in schedule.ranks]
    pp_rank = dice.randrange(schedule.pp)
    index = dice.randrange(len(ranks[pp_rank]))
    action = ranks[pp_rank][index]
    assume(action.kind != "R")  # recomputing is a choice
    if fault == "drop":
        del ranks[pp_rank][index]
    elif fault == "double":
        ranks[pp_rank].insert(index, action)
    elif fault == "rename":
        ranks[pp_rank][index] = action._replace(microbatch=schedule.num_microbatches)
    else:
        assume(schedule.pp > 1)
        del ranks[pp_rank][index]
        ranks[pp_rank - 1].append(action)
    with pytest.raises(PlanError):
        check_schedule(attrs.evolve(schedule, ranks=tuple(map(tuple, ranks))))


def refusal(text: str) -> str:
    with pytest.raises(PlanError) as error:
        check_schedule(parse_schedule(text, name="mine"))
    return str(error.value)


def test_an_action_out_of_turn_is_shown_in_place() -> None:
    """The message has the path, what is due, and the actions of all ranks about the offending one."""
    assert refusal("0: 0F0 0B1 0F1 0B0\n1: 1F0 1B0 1F1 1B1").splitlines() == [
        "schedule.ranks[0][1]='0B1': runs where 0F1 is due",
        "    0: 0F0 [0B1] 0F1 0B0",
        "    1: 1F0 1B0   1F1 1B1",
        "schedule='mine': never runs 0R1 or 0B1 or 0I1",
    ]


@QUIET
@given(any_schedule())
def test_the_limit_is_the_peak(schedule: Schedule) -> None:
    """A schedule is accepted at its peak, for each rank or all, and refused below, where it first holds too much."""
    peaks = peak_in_flight(schedule)
    check_schedule(schedule, limit=peaks)
    check_schedule(schedule, limit=max(peaks))
    with pytest.raises(PlanError, match=f"holds {max(peaks)} activations, more than {max(peaks) - 1}"):
        check_schedule(schedule, limit=max(peaks) - 1)


@pytest.mark.parametrize(
    ("text", "slices", "line"),
    [
        ("0: 0F1 0F0 0B1 0B0", 2, "'0F1': is out of turn among the 2 slices"),
        ("0: 0F0 0F1 0B0 0B1", 2, "'0B0': is out of turn among the 2 slices"),
        ("0: 0F0 0F1 0F2 0B2 0B1 0B0", 2, "num_microbatches=3: must be a multiple of slices=2"),
        ("0: 0F0+0B0", 1, "'0F0': pairs with the next, which is no backward of another"),
        ("0: 0F0 0B0+0F1 0B1", 1, "'0B0': pairs with the next, which is no backward"),
        ("0: 0F0+0F1 0B0 0B1", 1, "'0F0': pairs with the next"),
    ],
)
def test_slices_out_of_turn_and_wrong_pairs_are_named(text: str, slices: int, line: str) -> None:
    """Attention looks back along its sequence, and only a forward and a backward can run together."""
    with pytest.raises(PlanError, match=line):
        check_schedule(parse_schedule(text, name="mine", slices=slices))


def test_a_deadlock_shows_where_each_rank_is_stuck() -> None:
    """Two ranks that wait for each other are both shown."""
    assert refusal("0: 0F0 0B0 0F1 0B1\n1: 1F1 1B1 1F0 1B0").splitlines() == [
        "schedule.ranks[0][1]='0B0': never starts: a deadlock",
        "    0: 0F0 [0B0] 0F1 0B1",
        "    1: 1F1 1B1   1F0 1B0",
        "schedule.ranks[1][0]='1F1': never starts: a deadlock",
        "    0: 0F0   0B0 0F1 0B1",
        "    1: [1F1] 1B1 1F0 1B0",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("0: 0F0 0F0 0B0", "'0F0': runs where 0R0 or 0B0 or 0I0 is due"),
        ("0: 0F0 0B0 0B0", "'0B0': runs where nothing more is due"),
        ("0: 0F0 0I0 0B0", "'0B0': runs where 0W0 is due"),
        ("0: 0F0 0I0", "schedule='mine': never runs 0W0"),
        ("0: 0F0 0W0 0I0", "'0W0': runs where"),
        ("0: 0F0 0B0 0R0", "'0R0': runs where nothing more is due"),
        ("0: 0F0 0B0 0F2 0B2 0F8 0B8", "never runs 0F1, 0F3, 0F4, 0F5 and 2 more"),
        ("0: 0F0 1F0 1B0\n1: 0B0", "ranks.1..0.='0B0': stage 0 belongs to pp_rank=0"),
    ],
)
def test_what_is_wrong_is_named(text: str, line: str) -> None:
    """Each kind of fault has its own words."""
    assert re.search(line, refusal(text))


def test_stages_and_microbatches_beyond_the_schedule_are_named() -> None:
    """An action of another schedule is no action of this one."""
    schedule = attrs.evolve(parse_schedule("0: 0F0 0F1 1F0", name="mine"), vpp=1, num_microbatches=1)
    with pytest.raises(
        PlanError, match=r"(?s)'0F1': microbatch must lie in 0 \.\. 0.*'1F0': stage must lie in 0 \.\. 0"
    ):
        check_schedule(schedule)


def test_an_evaluation_has_no_backward() -> None:
    """Forwards alone are no training, and a training is no evaluation."""
    training = parse_schedule("0: 0F0 0B0", name="mine")
    with pytest.raises(PlanError, match="never runs 0R0 or 0B0"):
        check_schedule(forward_only(training))
    with pytest.raises(PlanError, match="'0B0': runs where nothing more is due"):
        check_schedule(training, evaluation=True)
