"""Zero bubble: backwards split in two, so that weight gradients fill what would be waiting.

Only a stage's input gradient keeps the rank before waiting; its weight gradient can come at any later time. Each of
these is an order of forwards and input gradients and a bound of memory; ``fill_waits`` adds the weight gradients.
"""

from collections.abc import Iterator, Mapping, Sequence

from ridgeline.parallel.actions import Action, actions_of
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.interleaved import grouped_orders
from ridgeline.parallel.schedules.one_f_one_b import alternate
from ridgeline.parallel.schedules.weight_grads import fill_waits

Times = Mapping[str, Sequence[float]] | None


def zb_h1(*, pp: int, num_microbatches: int, stage_us: Times = None, p2p_us: float | Sequence[float] = 0.0) -> Schedule:
    """Holds at most ``pp`` activations a rank, as 1F1B does on its first; its bubble is a third of 1F1B's at F=I=W.

    Args:
        pp: Pipeline ranks.
        num_microbatches: Any number >= 1.
        stage_us, p2p_us: Times for which the order is chosen, as ``fill_waits`` takes them.

    Source:
        Qi et al., Zero Bubble Pipeline Parallelism, arXiv 2401.10241, section 2.3, ZB-H1 and its automatic form ZB-1p:
        ``(pp-1)*(F+I-W)`` idle at F=I=W and enough microbatches.

    Example:
        >>> print(zb_h1(pp=2, num_microbatches=3))
        0: 0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2
        1: 1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2
    """
    ranks = tuple(_one_chunk(stage, pp - stage - 1, num_microbatches) for stage in range(pp))
    order = Schedule(name="zb_h1", vpp=1, num_microbatches=num_microbatches, ranks=ranks)
    return fill_waits(order, limit=pp, stage_us=stage_us, p2p_us=p2p_us)


def zb_2p(*, pp: int, num_microbatches: int, stage_us: Times = None, p2p_us: float | Sequence[float] = 0.0) -> Schedule:
    """Holds at most ``2*pp - 1`` activations a rank; at F=I=W no rank waits between its first action and its last.

    Args:
        pp: Pipeline ranks.
        num_microbatches: Any number >= 1; at F=I=W nothing is waited for from ``2*pp - 1`` on.
        stage_us, p2p_us: Times for which the order is chosen, as ``fill_waits`` takes them.

    Source:
        Qi et al., arXiv 2401.10241, section 2.3, ZB-H2 and its automatic form ZB-2p.
    """
    ranks = tuple(_one_chunk(stage, 2 * (pp - stage - 1), num_microbatches) for stage in range(pp))
    order = Schedule(name="zb_2p", vpp=1, num_microbatches=num_microbatches, ranks=ranks)
    return fill_waits(order, limit=2 * pp - 1, stage_us=stage_us, p2p_us=p2p_us)


def zb_vpp(
    *, pp: int, vpp: int, num_microbatches: int, stage_us: Times = None, p2p_us: float | Sequence[float] = 0.0
) -> Schedule:
    """Several chunks a rank in a loop; holds at most ``pp*vpp`` activations of a chunk, as much as 1F1B.

    Its warmup is shorter than that of interleaved 1F1B by one forward for each rank behind.

    Args:
        pp: Pipeline ranks, >= 2.
        vpp: Chunks per rank, >= 2.
        num_microbatches: A multiple of ``pp``.
        stage_us, p2p_us: Times for which the order is chosen, as ``fill_waits`` takes them.

    Raises:
        PlanError: There is no such order for these numbers.

    Source:
        Qi et al., Pipeline Parallelism with Controllable Memory, arXiv 2405.15362, "1F1B-I" with its backwards split;
        ``ScheduleInterleavedZeroBubble`` of torch 2.13 is one.
    """
    orders = grouped_orders("zb_vpp", backward="I", pp=pp, vpp=vpp, num_microbatches=num_microbatches, group=pp)
    ranks = tuple(
        alternate(forwards, backwards, warmup=pp - pp_rank - 1 + (vpp - 1) * pp)
        for pp_rank, (forwards, backwards) in enumerate(orders)
    )
    order = Schedule(name="zb_vpp", vpp=vpp, num_microbatches=num_microbatches, ranks=ranks)
    return fill_waits(order, limit=pp * vpp, stage_us=stage_us, p2p_us=p2p_us)


def zb_v(*, pp: int, num_microbatches: int, stage_us: Times = None, p2p_us: float | Sequence[float] = 0.0) -> Schedule:
    """Two chunks a rank in a V, which hold as much as 1F1B; at F=I=W no rank waits between its first action and last.

    Args:
        pp: Pipeline ranks.
        num_microbatches: Any number >= 1; at F=I=W nothing is waited for from ``2*pp - 1`` on.
        stage_us, p2p_us: Times for which the order is chosen, as ``fill_waits`` takes them.

    Source:
        Qi et al., arXiv 2401.10241, section 6, ZB-V; the order is that of figure 7.

    Example:
        >>> print(zb_v(pp=2, num_microbatches=3))
        0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0I0 0W0 3F2 3I2 0I1 3W2 0I2 0W1 0W2
        1: 1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 1I1 2I2 1I2 2W1 1W1 2W2 1W2
    """
    ranks = tuple(tuple(_in_v(pp, pp_rank, num_microbatches)) for pp_rank in range(pp))
    order = Schedule(name="zb_v", vpp=2, num_microbatches=num_microbatches, ranks=ranks)
    return fill_waits(order, limit=2 * pp, stage_us=stage_us, p2p_us=p2p_us)


def _one_chunk(stage: int, warmup: int, num_microbatches: int) -> tuple[Action, ...]:
    forwards = actions_of(stage, "F", num_microbatches)
    backwards = actions_of(stage, "I", num_microbatches)
    return alternate(forwards, backwards, warmup=warmup)


def _in_v(pp: int, pp_rank: int, num_microbatches: int) -> Iterator[Action]:
    """Forwards and input gradients of a rank: of its chunk on the way down, ``F I``, and on the way up, ``f i``.

        F       2*(pp - pp_rank) - 1 times
        f F     pp_rank times
        f i     pp - pp_rank times
        F I f i as long as there are forwards
        I i     pp_rank times
        I       what is left

    An order for ``2*pp - 1`` microbatches or more; with fewer, those that do not exist are left out of it.
    """
    size = max(num_microbatches, 2 * pp - 1)
    phases = (
        ("F", 2 * (pp - pp_rank) - 1),
        ("fF", pp_rank),
        ("fi", pp - pp_rank),
        ("FIfi", size - (2 * pp - pp_rank - 1)),
        ("Ifi", pp - 1 - pp_rank),
        ("Ii", pp_rank),
        ("I", pp - pp_rank),
    )
    chunks = {"F": pp_rank, "I": pp_rank, "f": 2 * pp - 1 - pp_rank, "i": 2 * pp - 1 - pp_rank}
    counts = dict.fromkeys(chunks, 0)
    for letters, times in phases:
        for letter in letters * times:
            microbatch = counts[letter]
            counts[letter] += 1
            if microbatch < num_microbatches:
                yield Action(chunks[letter], "F" if letter in "Ff" else "I", microbatch)
