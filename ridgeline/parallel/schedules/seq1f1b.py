"""Seq1F1B: 1F1B whose unit is a slice of a sequence, which divides the bubble and the activations by their number."""

from ridgeline.parallel.actions import Action
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.one_f_one_b import alternate


def seq1f1b(*, pp: int, num_microbatches: int, slices: int) -> Schedule:
    """Each microbatch slice by slice: forward in order, backward from the last slice to the first.

    A rank holds ``pp - pp_rank + slices - 1`` slices at most, and what attention needs of those before. With slices of
    equal times the bubble is that of 1F1B over ``slices``: ``(pp-1)*(F+B)/slices``.

    Args:
        pp: Pipeline ranks.
        num_microbatches: Any number >= 1 of whole microbatches.
        slices: Slices of each; 1 gives 1F1B.

    Source:
        Sun et al., Seq1F1B, arXiv 2406.03488, section 3: the forwards before the first backward of a rank.

    Example:
        >>> print(seq1f1b(pp=2, num_microbatches=2, slices=2))
        0: 0F0 0F1 0F2 0B1 0F3 0B0 0B3 0B2
        1: 1F0 1F1 1B1 1F2 1B0 1F3 1B3 1B2
    """
    numbers = range(num_microbatches * slices)
    back = [first + part for first in numbers[::slices] for part in reversed(range(slices))]
    ranks = tuple(
        alternate(
            [Action(stage, "F", number) for number in numbers],
            [Action(stage, "B", number) for number in back],
            warmup=pp - stage - 1 + slices - 1,
        )
        for stage in range(pp)
    )
    return Schedule(name="seq1f1b", vpp=1, num_microbatches=len(numbers), ranks=ranks, slices=slices)
