"""Interleaved 1F1B: each rank holds several chunks of the model, which divides the bubble by their number."""

from ridgeline.core.errors import PlanError, Problem, one_of
from ridgeline.parallel.actions import Action, Kind
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.one_f_one_b import alternate


def interleaved_1f1b(*, pp: int, vpp: int, num_microbatches: int, microbatch_group_size: int | None = None) -> Schedule:
    """The order in which Megatron-core runs a pipeline of several chunks a rank.

    Args:
        pp: Pipeline ranks, >= 2.
        vpp: Chunks per rank, >= 2.
        num_microbatches: At least ``pp``; what remains after whole groups must be 0 or at least ``pp``.
        microbatch_group_size: Microbatches in a row on one chunk, ``pp`` .. num_microbatches; None means ``pp``.

    Raises:
        PlanError: Megatron-core would refuse these numbers; every rule broken is named.

    Source:
        NVIDIA/Megatron-LM core_v0.16.1, megatron/core/pipeline_parallel/schedules.py, ``get_schedule_table``,
        ``get_pp_rank_microbatches`` and ``forward_backward_pipelining_with_interleaving``.

    Example:
        >>> print(interleaved_1f1b(pp=2, vpp=2, num_microbatches=2))
        0: 0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1
        1: 1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1
    """
    group = pp if microbatch_group_size is None else microbatch_group_size
    orders = grouped_orders(
        "interleaved_1f1b", backward="B", pp=pp, vpp=vpp, num_microbatches=num_microbatches, group=group
    )
    ranks = tuple(
        alternate(forwards, backwards, warmup=2 * (pp - pp_rank - 1) + (vpp - 1) * group)
        for pp_rank, (forwards, backwards) in enumerate(orders)
    )
    return Schedule(name="interleaved_1f1b", vpp=vpp, num_microbatches=num_microbatches, ranks=ranks)


def grouped_orders(
    name: str, *, backward: Kind, pp: int, vpp: int, num_microbatches: int, group: int
) -> tuple[tuple[list[Action], list[Action]], ...]:
    """The forwards and the backwards of each rank: one chunk after the other for each group of microbatches.

    Raises:
        PlanError: No schedule ``name`` exists for these numbers; every rule broken is named.
    """
    if problems := _problems(name, pp, vpp, num_microbatches, group):
        raise PlanError(problems)
    order = [
        (chunk, microbatch)
        for first in range(0, num_microbatches, group)
        for chunk in range(vpp)
        for microbatch in range(first, min(first + group, num_microbatches))
    ]
    return tuple(
        (
            [Action(chunk * pp + pp_rank, "F", microbatch) for chunk, microbatch in order],
            [Action((vpp - 1 - chunk) * pp + pp_rank, backward, microbatch) for chunk, microbatch in order],
        )
        for pp_rank in range(pp)
    )


def _problems(name: str, pp: int, vpp: int, num_microbatches: int, group: int) -> list[Problem]:
    problems = []
    if pp < 2:
        problems.append(Problem("layout.pp", pp, f"{name} needs at least 2 pipeline ranks", "use vpp=1"))
    if vpp < 2:
        problems.append(Problem("layout.vpp", vpp, f"{name} needs at least 2 chunks a rank", "use '1f1b'"))
    if not pp <= group <= num_microbatches:
        rule = f"must lie in pp .. num_microbatches = {pp} .. {num_microbatches}"
        way_out = f"use {pp}" if pp <= num_microbatches else f"raise num_microbatches to {pp}"
        problems.append(Problem("layout.microbatch_group_size", group, rule, way_out))
    elif 0 < num_microbatches % group < pp:
        whole = num_microbatches // group * group
        rule = f"leaves {num_microbatches - whole} after groups of {group}; the rest must be 0 or at least pp={pp}"
        above = whole + pp if pp < group else whole + group
        problems.append(Problem("num_microbatches", num_microbatches, rule, one_of((whole, above))))
    return problems
