"""What ranks send and receive: complete, in time, and without deadlock even when every transfer blocks."""

import itertools

from hypothesis import given, settings

from ridgeline.parallel.actions import Action
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.interleaved import interleaved_1f1b
from ridgeline.parallel.traffic import Step, steps_of
from tests.parallel.any_schedule import any_schedule

QUIET = settings(deadline=None, max_examples=100, database=None)


@QUIET
@given(any_schedule())
def test_every_tensor_between_ranks_is_sent_once_and_received_in_time(schedule: Schedule) -> None:
    """Each action finds its input: made by its own rank before, or received before from the rank that made it."""
    ranks = steps_of(schedule)
    home = {action: pp_rank for pp_rank, actions in enumerate(schedule.ranks) for action in actions}
    sent = {step.action: step.send_to for steps in ranks for step in steps if step.send_to is not None}
    received = [(action, pp_rank) for pp_rank, steps in enumerate(ranks) for step in steps for action in step.receives]
    assert sorted(sent.items()) == sorted(received)
    for pp_rank, steps in enumerate(ranks):
        at_hand: set[Action] = set()
        for step in steps:
            at_hand.update(step.receives)
            stage, kind, microbatch = step.action
            source = stage - 1 if kind == "F" else stage + 1
            if kind in ("F", "B", "I") and 0 <= source < schedule.num_stages:
                needed = Action(source, kind, microbatch)
                assert needed in at_hand
                assert (home[needed] == pp_rank) == (needed not in sent)
            at_hand.add(step.action)


@QUIET
@given(any_schedule())
def test_what_a_rank_sends_to_another_arrives_in_order(schedule: Schedule) -> None:
    """Transfers without tags, as NCCL's and HCCL's, match the n-th send to the n-th receive."""
    ranks = steps_of(schedule)
    home = {action: pp_rank for pp_rank, actions in enumerate(schedule.ranks) for action in actions}
    for sender, receiver in itertools.permutations(range(schedule.pp), 2):
        sent = [step.action for step in ranks[sender] if step.send_to == receiver]
        assert sent == [action for step in ranks[receiver] for action in step.receives if home[action] == sender]


@QUIET
@given(any_schedule())
def test_blocking_ranks_come_to_their_end(schedule: Schedule) -> None:
    """Ranks that post a send and their receives together, and wait for all of them, never wait in a circle."""
    assert stuck(steps_of(schedule)) == []


def test_receiving_just_in_time_would_deadlock() -> None:
    """Why receives come early: the last rank of an interleaved pipeline makes what the first needs much later."""
    schedule = interleaved_1f1b(pp=4, vpp=2, num_microbatches=16)
    late = [list(steps) for steps in steps_of(schedule)]
    for steps in late:
        arrivals = [action for step in steps for action in step.receives]
        for index, step in enumerate(steps):
            stage, kind, microbatch = step.action
            needed = Action(stage - 1 if kind == "F" else stage + 1, kind, microbatch)
            steps[index] = step._replace(receives=(needed,) if needed in arrivals else ())
    assert stuck(late)
    assert not stuck(steps_of(schedule))


def stuck(ranks: list[list[Step]] | tuple[tuple[Step, ...], ...]) -> list[int]:
    """The ranks that never finish when each stands between two actions until all it sends and receives is through."""
    place = [0] * len(ranks)
    through: set[Action] = set()

    def posted(pp_rank: int) -> tuple[set[Action], set[Action]]:
        """What a rank offers and awaits where it stands."""
        steps, index = ranks[pp_rank], place[pp_rank]
        before = steps[index - 1] if index else None
        offers = {before.action} if before is not None and before.send_to is not None else set()
        return offers, set(steps[index].receives) if index < len(steps) else set()

    moved = True
    while moved:
        moved = False
        posts = [posted(pp_rank) for pp_rank in range(len(ranks))]
        offered = set().union(*(offers for offers, _ in posts))
        awaited = set().union(*(awaits for _, awaits in posts))
        through |= offered & awaited
        for pp_rank, (offers, awaits) in enumerate(posts):
            if place[pp_rank] < len(ranks[pp_rank]) and through >= offers | awaits:
                place[pp_rank] += 1
                moved = True
    return [pp_rank for pp_rank, steps in enumerate(ranks) if place[pp_rank] < len(steps)]
