"""GPipe: all forwards, then all backwards."""

from ridgeline.parallel.actions import actions_of
from ridgeline.parallel.schedule import Schedule


def gpipe(*, pp: int, num_microbatches: int) -> Schedule:
    """One chunk a rank, which holds the activations of every microbatch at once.

    Args:
        pp: Pipeline ranks.
        num_microbatches: Any number >= 1.

    Source:
        Huang et al., GPipe, arXiv 1811.06965, figure 2c; backwards here in the order of forwards.

    Example:
        >>> print(gpipe(pp=2, num_microbatches=2))
        0: 0F0 0F1 0B0 0B1
        1: 1F0 1F1 1B0 1B1
    """
    ranks = tuple(
        (*actions_of(stage, "F", num_microbatches), *actions_of(stage, "B", num_microbatches)) for stage in range(pp)
    )
    return Schedule(name="gpipe", vpp=1, num_microbatches=num_microbatches, ranks=ranks)
