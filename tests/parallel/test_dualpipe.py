"""DualPipeV: the order of torch's, both cooldowns, and what its pairs are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining.schedules import ScheduleDualPipeV

from ridgeline.core.errors import PlanError
from ridgeline.parallel.schedules.dualpipe import dualpipe_v
from ridgeline.parallel.simulate import peak_in_flight, simulate
from ridgeline.parallel.validate import check_schedule
from tests.parallel.torch_schedules import rows_of

QUIET = settings(deadline=None, max_examples=40, database=None)
EVEN = {"F": 0.5, "I": 0.5, "W": 0.5, "B": 1.0}


@QUIET
@given(st.integers(2, 8), st.integers(0, 12))
def test_with_a_split_cooldown_it_is_torchs(pp: int, more: int) -> None:
    """Action for action."""
    schedule = dualpipe_v(pp=pp, num_microbatches=2 * pp + more, split_cooldown=True)
    theirs = rows_of(ScheduleDualPipeV, pp=pp, num_microbatches=2 * pp + more)
    assert [" ".join(map(str, row)) for row in schedule.ranks] == [
        line.partition(": ")[2] for line in theirs.splitlines()
    ]


@QUIET
@given(st.integers(2, 8), st.integers(0, 12), st.booleans())
def test_it_is_valid_and_holds_one_activation_more_than_1f1b(pp: int, more: int, split: bool) -> None:
    """``2*pp + 1`` of a chunk at most, as DeepSeek's table says of DualPipe: pp + 1 of its halves' pairs."""
    check_schedule(dualpipe_v(pp=pp, num_microbatches=2 * pp + more, split_cooldown=split), limit=2 * pp + 1)


@QUIET
@given(st.integers(2, 8), st.integers(0, 12))
def test_splitting_the_cooldown_takes_no_longer(pp: int, more: int) -> None:
    """At F=I=W it saves two thirds of the wait: ``(pp-1)/2`` of a stage's forward is left, of ``3*(pp-1)/2``."""
    count = 2 * pp + more
    spans = []
    for split in (False, True):
        schedule = dualpipe_v(pp=pp, num_microbatches=count, split_cooldown=split)
        spans.append(simulate(schedule, stage_us={kind: [us] * 2 * pp for kind, us in EVEN.items()}).makespan_us)
    assert spans == [3 * count + 3 * (pp - 1) / 2, 3 * count + (pp - 1) / 2]


def test_figures_of_torch() -> None:
    """Bubble and microbatches in flight of p=8, m=32, measured on torch's; no overlap credited."""
    schedule = dualpipe_v(pp=8, num_microbatches=32, split_cooldown=True)
    timeline = simulate(schedule, stage_us={kind: [us] * 16 for kind, us in EVEN.items()})
    assert round(timeline.bubble, 4) == 0.0352
    assert max(peak_in_flight(schedule)) / 2 == 8.5


def test_as_printed() -> None:
    """Pairs are one word; the last rank's first is not one, since all would wait for it."""
    assert str(dualpipe_v(pp=2, num_microbatches=4)).splitlines() == [
        "0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1     0F3+3B1 3F2+0B0 3B2 3F3+0B1 3B3 0B2 0B3",
        "1: 1F0 2F0 1F1 2F1 1F2 2B0 2F2+1B0 1F3+2B1 2F3+1B1 2B2 1B2     2B3 1B3",
    ]
    assert str(dualpipe_v(pp=2, num_microbatches=4, split_cooldown=True)).splitlines() == [
        "0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1     0F3+3B1 3F2+0B0 3B2 3F3+0B1 3B3 0I2 0W2 0I3 0W3",
        "1: 1F0 2F0 1F1 2F1 1F2 2B0 2F2+1B0 1F3+2B1 2F3+1B1 2B2 1B2     2I3 1I3 2W3 1W3",
    ]


def test_too_few_microbatches_are_refused() -> None:
    with pytest.raises(PlanError, match=r"num_microbatches=7: dualpipe_v needs at least 2\*pp=8; raise batch.gbs"):
        dualpipe_v(pp=4, num_microbatches=7)
