"""A hypothesis strategy for valid schedules of no particular kind."""

import random

from hypothesis import strategies as st

from ridgeline.parallel.actions import Action
from ridgeline.parallel.schedule import Schedule


@st.composite
def any_schedule(draw: st.DrawFn) -> Schedule:
    """A random order that runs: stages in a loop or in a V, backwards whole or split, some recomputed.

    It is made by running random actions that are ready, so that it owes nothing to the code under test.
    """
    pp, vpp, size = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    in_v, split, recompute = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    dice = random.Random(draw(st.integers(0, 2**32)))

    def owner(stage: int) -> int:
        chunk, place = divmod(stage, pp)
        return pp - 1 - place if in_v and chunk % 2 else place

    todo: dict[Action, list[Action]] = {}
    for stage in range(pp * vpp):
        for microbatch in range(size):
            forward = Action(stage, "F", microbatch)
            todo[forward] = [Action(stage - 1, "F", microbatch)] if stage else []
            kind = "I" if split else "B"
            backward = Action(stage, kind, microbatch)
            todo[backward] = [forward] if stage == pp * vpp - 1 else [forward, Action(stage + 1, kind, microbatch)]
            if split:
                todo[Action(stage, "W", microbatch)] = [backward]
            if recompute and dice.random() < 0.5:
                again = Action(stage, "R", microbatch)
                todo[again] = [forward]
                todo[backward].append(again)
    ranks: list[list[Action]] = [[] for _ in range(pp)]
    done: set[Action] = set()
    while todo:
        action = dice.choice([action for action, needs in todo.items() if done.issuperset(needs)])
        del todo[action]
        done.add(action)
        ranks[owner(action.stage)].append(action)
    return Schedule(name="any", vpp=vpp, num_microbatches=size, ranks=tuple(map(tuple, ranks)))
