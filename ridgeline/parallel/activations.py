"""Activations over time: what each action of a pipeline rank finds held, and what it takes itself."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate, islice
from operator import add, itemgetter
from typing import NamedTuple

from ridgeline.core.job import Job
from ridgeline.parallel.actions import Action
from ridgeline.parallel.ops import Sizes, sizes_of
from ridgeline.parallel.work import Run, StageWork, deferred_bytes, kept_bytes, restored_bytes


class StageLive(NamedTuple):
    """Bytes of one microbatch on a stage.

    Attributes:
        kept: From its forward to its backward.
        deferred: From a backward of input gradients to that of weight gradients.
        forward, backward: At the worst moment of either, what is kept then among them.
        dropped: Of one that is recomputed ahead of its backward, from its forward to its recompute.
    """

    kept: int
    deferred: int
    forward: int
    backward: int
    dropped: int = 0


class Moment(NamedTuple):
    """The worst moment of one action.

    Attributes:
        held: What the microbatches in flight keep, this one among them.
        work: What the action takes beyond that.
        in_flight: Microbatches whose backward is still to come.
        left: What is kept once the action is over.
    """

    action: Action
    held: int
    work: int
    in_flight: int
    left: int


class _Step(NamedTuple):
    """How an action changes what is held and in flight: as it begins, while it runs, as it ends."""

    begins: int
    work: int
    ends: int
    enters: int
    leaves: int


def stage_live(job: Job, work: Sequence[StageWork]) -> tuple[StageLive, ...]:
    """What one microbatch takes on each stage."""
    sizes = sizes_of(job)
    live = cache(lambda one, last: _stage_live(job, one, sizes, last=last))  # most stages are alike
    return tuple(live(one, stage == len(work) - 1) for stage, one in enumerate(work))


def moments(actions: Sequence[Action], stages: Sequence[StageLive], *, pairs: Collection[int] = ()) -> Iterator[Moment]:
    """The worst moment of each action of a rank, in order; of both of a pair, what they take together."""
    words = _words(actions)
    steps = _steps(words, stages)
    held = in_flight = 0
    together = _Together(0, 0)
    for index, (action, word) in enumerate(zip(actions, words, strict=True)):
        begins, work, ends, enters, leaves = steps[word]
        held, in_flight = held + begins, in_flight + enters
        if index in pairs:
            together = _together(steps[word], steps[words[index + 1]])
        elif index - 1 not in pairs:
            together = _Together(0, work)
        yield Moment(Action(*action), held - together.shared, together.work, in_flight, held + ends)
        held, in_flight = held + ends, in_flight - leaves


def peak_moment(actions: Sequence[Action], stages: Sequence[StageLive], *, pairs: Collection[int] = ()) -> Moment:
    """The worst of all ``moments``, the first of several equal ones."""
    words = _words(actions)
    steps = _steps(words, stages)
    changes = {word: step.begins + step.ends for word, step in steps.items()}
    heights = {word: step.begins + step.work for word, step in steps.items()}
    held = accumulate(map(changes.__getitem__, words), initial=0)
    tops = list(map(add, held, map(heights.__getitem__, words)))
    for index in pairs:  # the first tells for both
        forward, backward = steps[words[index]], steps[words[index + 1]]
        shared, work = _together(forward, backward)
        tops[index] += work - forward.work - shared
        tops[index + 1] = 0
    return next(islice(moments(actions, stages, pairs=pairs), tops.index(max(tops)), None))


class _Together(NamedTuple):
    """A forward and a backward layer by layer: what one keeps in the place of what the other gives back, and work."""

    shared: int
    work: int


def _together(forward: _Step, backward: _Step) -> _Together:
    return _Together(min(forward.begins, max(0, -backward.ends)), forward.work + backward.work)


def _words(actions: Sequence[Action]) -> list[tuple[int, str]]:
    """Stage and kind of each action, with ``f`` for the forward of what is recomputed ahead of its backward."""
    words = list(map(itemgetter(0, 1), actions))
    if all(kind != "R" for _, kind in set(words)):
        return words
    again = {(stage, microbatch) for stage, kind, microbatch in actions if kind == "R"}
    return [
        (stage, "f" if kind == "F" and (stage, microbatch) in again else kind) for stage, kind, microbatch in actions
    ]


def _steps(words: Sequence[tuple[int, str]], stages: Sequence[StageLive]) -> Mapping[tuple[int, str], _Step]:
    return {(stage, kind): _step(stages[stage], kind) for stage, kind in set(words)}


def _step(stage: StageLive, kind: str) -> _Step:
    kept, deferred, forward, backward, dropped = stage
    if kind == "F":
        return _Step(kept, forward - kept, 0, 1, 0)
    if kind == "f":
        return _Step(dropped, forward - kept, 0, 1, 0)
    if kind == "R":
        return _Step(kept - dropped, forward - kept, 0, 0, 0)
    if kind == "B":
        return _Step(0, backward - kept, -kept, 0, 1)
    if kind == "I":  # layer by layer, what weight gradients need takes the place of what was kept
        return _Step(0, backward - kept + max(0, deferred - kept), deferred - kept, 0, 0)
    return _Step(0, 0, -deferred if kind == "W" else 0, 0, int(kind == "W"))


def _stage_live(job: Job, work: StageWork, sizes: Sizes, *, last: bool) -> StageLive:
    stream = sizes.own_tokens * sizes.hidden * sizes.width
    kept = forward = backward = 0
    runs, dropped = work.runs, stream
    if job.memory.recompute_when == "advance":  # whole layers come back at a time, before the backward
        dropped = sum(kept_bytes(run, sizes) for run in runs)
        runs = tuple(run._replace(group=0, parts=()) if run.group else run for run in runs)
    for run in runs:
        kept += kept_bytes(run, sizes)
        for op in run.ops:
            forward = max(forward, kept + op.forward_work_bytes + stream)
            restored = restored_bytes(run, op, sizes)
            backward = max(backward, kept + op.backward_work_bytes + 2 * stream + restored)
    # On devices with streams a sent output gives its memory back; on cpu it is kept (deallocate_pipeline_outputs).
    output = 0 if last or job.cluster.chip.device != "cpu" else stream
    if job.layout.slices > 1:  # slices share the keys and values of their sequence, and add to the gradients of both
        shared = job.layout.slices * sum(2 * run.layers * _key_bytes(run) for run in work.runs)
        forward, backward = forward + shared, backward + 2 * shared
    deferred = sum(deferred_bytes(run, sizes) for run in work.runs)
    forward, backward = max(forward, kept) + output, max(backward, kept) + output
    return StageLive(kept + output, deferred, forward, backward, dropped + output)


def _key_bytes(run: Run) -> int:
    return sum(saved.size_bytes for op in run.ops for saved in op.saved if saved.name == "k")
