"""DualPipeV: two chunks a rank in a V, where the forward of one runs together with the backward of the other."""

from collections import deque
from collections.abc import Iterator
from typing import cast

from ridgeline.core.errors import PlanError, Problem
from ridgeline.parallel.actions import Action, Kind
from ridgeline.parallel.schedule import Schedule

FEWEST = 2
"""Microbatches a rank, at the least."""


def dualpipe_v(*, pp: int, num_microbatches: int, split_cooldown: bool = False) -> Schedule:
    """In its steady part a rank runs pairs: the forward of one chunk with the backward of the other.

    What a pair may save is its communication, the all-to-all of experts above all, which one half computes beside.

    Args:
        pp: Pipeline ranks.
        num_microbatches: At least ``2*pp``.
        split_cooldown: Split the last backwards, so that weight gradients fill the cooldown. Activations then live
            longer; MindSpeed calls it ``--dualpipev-dw-detach`` and leaves it off.

    Raises:
        PlanError: Too few microbatches.

    Source:
        deepseek-ai/DualPipe 3da1bbe, dualpipe/dualpipev.py, whose steps these are; MindSpeed 028de58c, dualpipev.

    Example:
        >>> print(dualpipe_v(pp=2, num_microbatches=4))
        0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3+3B1 3F2+0B0 3B2 3F3+0B1 3B3 0B2 0B3
        1: 1F0 2F0 1F1 2F1 1F2 2B0 2F2+1B0 1F3+2B1 2F3+1B1 2B2 1B2 2B3 1B3
    """
    name = "dualpipe_v_split" if split_cooldown else "dualpipe_v"
    if num_microbatches < FEWEST * pp:
        rule = f"{name} needs at least {FEWEST}*pp={FEWEST * pp}"
        raise PlanError(Problem("num_microbatches", num_microbatches, rule, "raise batch.gbs or lower batch.mbs"))
    rows = [tuple(_words(pp, pp_rank, num_microbatches, split_cooldown)) for pp_rank in range(pp)]
    ranks, pairs = zip(*(_numbered(words, pp, pp_rank) for pp_rank, words in enumerate(rows)), strict=True)
    return Schedule(name=name, vpp=2, num_microbatches=num_microbatches, ranks=ranks, pairs=pairs)


def _words(pp: int, pp_rank: int, num_microbatches: int, split_cooldown: bool) -> Iterator[str]:
    """What a rank does: ``F B`` of its chunk on the way down the V, ``f b`` of the one on the way up, ``W`` of either.

    Warmup, its backwards split; the steady pairs; then backwards alone.
    """
    behind = pp - pp_rank - 1
    yield from "F" * (2 * behind)
    yield from "Ff" * (pp_rank + 1)
    yield from "iWf" * behind
    steady = ["F+b", "f+B"] * (num_microbatches - 2 * pp + pp_rank + 1)
    # On the last rank the first pair would hold up its own other half, and with it all ranks.
    yield from (["F", "b", *steady[1:]] if behind == 0 else steady)
    yield from ["b", "f+B"] * behind
    last = "bB" * (pp_rank + 1)
    whole = pp_rank + 1 if split_cooldown else len(last)  # half of them, which the split ones then make room for
    yield from (letter if place < whole else {"b": "i", "B": "I"}[letter] for place, letter in enumerate(last))
    yield from ("W", "I") * behind if split_cooldown else "B" * behind
    if split_cooldown:
        yield from "W" * (pp_rank + 1)


def _numbered(words: tuple[str, ...], pp: int, pp_rank: int) -> tuple[tuple[Action, ...], frozenset[int]]:
    """The actions of a rank, each kind of each chunk counted through the microbatches, and the places of its pairs."""
    actions: list[Action] = []
    pairs: list[int] = []
    forwards, backwards = {pp_rank: 0, 2 * pp - 1 - pp_rank: 0}, {pp_rank: 0, 2 * pp - 1 - pp_rank: 0}
    waiting: deque[Action] = deque()
    for word in words:
        if "+" in word:
            pairs.append(len(actions))
        for letter in word.replace("+", ""):
            if letter == "W":
                actions.append(waiting.popleft())
                continue
            kind = cast(Kind, letter.upper())
            stage = pp_rank if letter.isupper() else 2 * pp - 1 - pp_rank
            counts = forwards if kind == "F" else backwards
            actions.append(Action(stage, kind, counts[stage]))
            if kind == "I":
                waiting.append(Action(stage, "W", counts[stage]))
            counts[stage] += 1
    return tuple(actions), frozenset(pairs)
