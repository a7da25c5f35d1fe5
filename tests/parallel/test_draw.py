"""Pictures of pipelines, checked by eye."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.parallel.draw import draw
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.interleaved import interleaved_1f1b
from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b
from ridgeline.parallel.schedules.recompute import recompute_in_advance
from ridgeline.parallel.schedules.zero_bubble import zb_h1, zb_v
from ridgeline.parallel.simulate import Timeline, simulate
from tests.parallel.any_schedule import any_schedule


def timed(schedule: Schedule) -> Timeline:
    stages = schedule.num_stages
    return simulate(
        schedule,
        stage_us={"F": [10] * stages, "B": [20] * stages, "I": [10] * stages, "W": [10] * stages, "R": [10] * stages},
    )


def test_a_whole_pipeline() -> None:
    """What fits is drawn in full, with microbatches by number."""
    assert draw(timed(one_f_one_b(pp=4, num_microbatches=4))).splitlines() == [
        "0 |F0 F1 F2 F3 .  .  .  .  .  .  B0=== .  B1=== .  B2=== .  B3=== |",
        "1 |.  F0 F1 F2 .  .  .  .  B0=== F3 B1=== .  B2=== .  B3=== .  .  |",
        "2 |.  .  F0 F1 .  .  B0=== F2 B1=== F3 B2=== .  B3=== .  .  .  .  |",
        "3 |.  .  .  F0 B0=== F1 B1=== F2 B2=== F3 B3=== .  .  .  .  .  .  |",
        "a slot is 10 us, 21 in all",
    ]


def test_the_steady_middle_is_left_out() -> None:
    """What is too wide keeps its start and its end."""
    assert draw(timed(one_f_one_b(pp=2, num_microbatches=64)), width=70).splitlines() == [
        "0 |F0- F1- .   .   B0===== F2- B1== ~ === F63 B62==== .   B63==== |",
        "1 |.   F0- B0===== F1- B1===== F2-  ~ B62==== F63 B63==== .   .   |",
        "a slot is 10 us, 195 in all",
    ]


def test_chunks_are_told_by_stage() -> None:
    """With several chunks a rank each action is named with its stage, as the schedule prints it."""
    assert draw(timed(interleaved_1f1b(pp=2, vpp=2, num_microbatches=2))).splitlines() == [
        "0 |0F0 0F1 2F0 2F1 .   .   2B0==== .   2B1==== 0B0==== 0B1==== |",
        "1 |.   1F0 1F1 3F0 3B0==== 3F1 3B1==== 1B0==== 1B1==== .   .   |",
        "a slot is 10 us, 15 in all",
    ]


def test_a_deep_pipeline_is_drawn_in_letters() -> None:
    """Where names would hide the shape, a slot is one letter."""
    assert draw(timed(interleaved_1f1b(pp=8, vpp=2, num_microbatches=16)), width=80).splitlines() == [
        "0 |aaaaaaaabbbbbbbbaaaaaaa.......BBaBB.. ~ BB.BB.BB.BB.BB.BB.BBAAAAAAAAAAAAAAAA|",
        "1 |.aaaaaaaabbbbbbbbaaaaa......BBaBBaBBa ~ .BB.BB.BB.BB.BB.BBAAAAAAAAAAAAAAAA..|",
        "2 |..aaaaaaaabbbbbbbbaaa.....BBaBBaBBaBB ~ B.BB.BB.BB.BB.BBAAAAAAAAAAAAAAAA....|",
        "3 |...aaaaaaaabbbbbbbba....BBaBBaBBaBBaB ~ BB.BB.BB.BB.BBAAAAAAAAAAAAAAAA......|",
        "4 |....aaaaaaaabbbbbbb...BBbBBaBBaBBaBBa ~ .BB.BB.BB.BBAAAAAAAAAAAAAAAA........|",
        "5 |.....aaaaaaaabbbbb..BBbBBbBBbBBaBBaBB ~ B.BB.BB.BBAAAAAAAAAAAAAAAA..........|",
        "6 |......aaaaaaaabbb.BBbBBbBBbBBbBBbBBaB ~ BB.BB.BBAAAAAAAAAAAAAAAA............|",
        "7 |.......aaaaaaaabBBbBBbBBbBBbBBbBBbBBb ~ bBBbBBAAAAAAAAAAAAAAAA..............|",
        "a slot is 10 us, 117 in all; a, b, ...: forward of chunk 0, 1, ...; A, B, ...: backward",
    ]


def test_weight_gradients_and_recomputes_look_their_own() -> None:
    """By name each kind fills its slots in its own way."""
    schedule = recompute_in_advance(zb_h1(pp=2, num_microbatches=2))
    times = {"F": [10] * 2, "I": [20] * 2, "W": [20] * 2, "R": [20] * 2}
    assert draw(simulate(schedule, stage_us=times)).splitlines() == [
        "0 |F0 F1 R0*** I0=== W0::: R1*** I1=== W1::: |",
        "1 |.  F0 I0=== F1 I1=== W0::: W1::: .  .  .  |",
        "a slot is 10 us, 14 in all",
    ]


def test_weight_gradients_in_letters() -> None:
    """A zero bubble is seen at a glance; the legend tells what the signs are."""
    assert draw(timed(zb_v(pp=8, num_microbatches=16)), width=80).splitlines() == [
        "0 |aaaaaaaaaaaaaaabB:bB:bB:bB:bB:bB:bB:b ~ bB:A:bB:A:bBA:A:A:A:A:A:A:A::.......|",
        "1 |.aaaaaaaaaaaaababB:bB:bB:bB:bB:bB:bB: ~ B:A:bB:A:bBABA:A:A:A:A:A:A::::......|",
        "2 |..aaaaaaaaaaabababB:bB:bB:bB:bB:bB:aA ~ :A:bB:A:bBABABA:A:A:A:A:A::::::.....|",
        "3 |...aaaaaaaaababababB:bB:bB:bB:bB:aA:b ~ A:bB:A:bBABABABA:A:A:A:A::::::::....|",
        "4 |....aaaaaaabababababB:bB:bB:bB:aA:bB: ~ :bB:A:bBABABABABA:A:A:A::::::::::...|",
        "5 |.....aaaaababababababB:bB:bB:aA:bB:aA ~ bB:A:bBABABABABABA:A:A::::::::::::..|",
        "6 |......aaabababababababB:bB:aA:bB:aA:b ~ B:A:bBABABABABABABA:A::::::::::::::.|",
        "7 |.......ababababababababB:aA:bB:aA:bB: ~ aA:bBABABABABABABABA::::::::::::::::|",
        "a slot is 10 us, 103 in all; a, b, ...: forward of chunk 0, 1, ...; A, B, ...: backward; ':': weight gradient",
    ]


@settings(deadline=None, max_examples=60, database=None)
@given(any_schedule(), st.integers(40, 200))
def test_rows_are_as_wide_as_each_other_and_as_the_page(schedule: Schedule, width: int) -> None:
    """No line is wider than asked, and rows are in step."""
    *rows, _ = draw(timed(schedule), width=width).splitlines()
    assert len(rows) == schedule.pp
    assert len({len(row) for row in rows}) == 1
    assert len(rows[0]) <= width
