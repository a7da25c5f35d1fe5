"""1F1B: after its warmup each rank alternates one forward and one backward, so that it holds at most pp activations."""

from itertools import chain

from ridgeline.core.errors import PlanError, Problem
from ridgeline.parallel.actions import Action, actions_of
from ridgeline.parallel.schedule import Schedule


def one_f_one_b(*, pp: int, num_microbatches: int, vpp: int = 1, microbatch_group_size: int | None = None) -> Schedule:
    """The order in which Megatron-core runs a pipeline of one chunk a rank, or a single rank.

    Args:
        pp: Pipeline ranks.
        num_microbatches: Any number >= 1; fewer than ``pp`` leave ranks idle but are legal.
        vpp: Must be 1.
        microbatch_group_size: Has no meaning here; must be None.

    Raises:
        PlanError: More than one chunk a rank, or a microbatch group.

    Source:
        NVIDIA/Megatron-LM core_v0.16.1, megatron/core/pipeline_parallel/schedules.py,
        ``forward_backward_pipelining_without_interleaving`` and ``forward_backward_no_pipelining``.

    Example:
        >>> print(one_f_one_b(pp=2, num_microbatches=3))
        0: 0F0 0F1 0B0 0F2 0B1 0B2
        1: 1F0 1B0 1F1 1B1 1F2 1B2
    """
    problems = []
    if vpp != 1:
        problems.append(Problem("layout.vpp", vpp, "1f1b runs one chunk a rank", "use 1 or 'interleaved_1f1b'"))
    if microbatch_group_size is not None:
        rule = "1f1b runs no groups of microbatches"
        problems.append(Problem("layout.microbatch_group_size", microbatch_group_size, rule, "leave it out"))
    if problems:
        raise PlanError(problems)
    ranks = tuple(
        alternate(
            actions_of(stage, "F", num_microbatches),
            actions_of(stage, "B", num_microbatches),
            warmup=pp - stage - 1,
        )
        for stage in range(pp)
    )
    return Schedule(name="1f1b", vpp=1, num_microbatches=num_microbatches, ranks=ranks)


def alternate(forwards: list[Action], backwards: list[Action], *, warmup: int) -> tuple[Action, ...]:
    """``warmup`` forwards, then a forward and a backward in turn until no forward is left, then the other backwards."""
    warmup = min(warmup, len(forwards))
    steady = len(forwards) - warmup
    pairs = zip(forwards[warmup:], backwards[:steady], strict=True)
    return (*forwards[:warmup], *chain.from_iterable(pairs), *backwards[steady:])
