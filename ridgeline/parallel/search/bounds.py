"""What a layout takes and holds at the least, provably below what its plan says.

A layer's time, weights and activations on a rank do not depend on the stage it lies on. So they are told once for a
shape and shared by every division into stages, and of each stage they are sums. From them:

    a branch    the ranks of a pipeline are busy for, and hold, all layers together, so one of them for the mean
    a layout    a rank waits for the stages before its first one, is busy, and the last gradient still has to pass
                those stages; under 1F1B a microbatch must also come back before the next may leave
                a rank holds its states, and every forward that it runs before its first backward

``Line`` holds a layout's stages, ``line_us`` and ``line_bytes`` bound it. Sums are taken in another order than the plan
takes them, hence ``ROUNDING``.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate
from operator import add, mul
from typing import NamedTuple

from ridgeline.core.job import Job
from ridgeline.parallel.memory import ALLOCATED_OF_RESERVED
from ridgeline.parallel.search.grid import Shape
from ridgeline.parallel.search.units import Running

ROUNDING = 1 - 1e-9
WHOLE_BACKWARD = ("1f1b", "interleaved_1f1b", "gpipe")
"""Schedules that run a backward as one action, so that a rank's last action is one that others wait for."""


class Line(NamedTuple):
    """A division of the layers into stages, and the time of each for one microbatch.

    Attributes:
        owner: The pipeline rank of each stage.
        hop_us: Of the transfer over each boundary of stages, 0 within a rank.
    """

    owner: tuple[int, ...]
    hop_us: tuple[float, ...]
    forward_us: Sequence[float]
    backward_us: Sequence[float]


def mean_us(job: Job, shape: Shape, running: Running) -> float:
    """Microbatches take at least what their ranks have to do, divided evenly."""
    microbatch_us = running.forward_us.total + running.backward_us.total
    return ROUNDING * microbatch_us * job.batch.gbs / shape.mbs * shape.tp * shape.cp / job.cluster.world_size


def line_us(line: Line, *, schedule: str, num_microbatches: int) -> float:
    """A schedule takes at least this: of the ranks' bounds the largest."""
    pp = max(line.owner) + 1
    heads = list(accumulate(map(add, line.forward_us, (*line.hop_us, 0.0)), initial=0.0))
    tails = [0.0] * len(heads)
    if schedule in WHOLE_BACKWARD:
        tails = list(accumulate(map(add, line.backward_us, (*line.hop_us, 0.0)), initial=0.0))
    head, tail, busy = heads[:pp], tails[:pp], [0.0] * pp
    for rank, both_us in zip(line.owner, map(add, line.forward_us, line.backward_us), strict=True):
        busy[rank] += num_microbatches * both_us
    if schedule == "interleaved_1f1b":  # of earlier chunks a rank runs pp microbatches before, or after, a later one
        for rank in range(pp):
            forward = backward = 0.0
            for stage in range(rank + pp, len(line.owner), pp):
                forward += pp * line.forward_us[stage - pp]
                backward += pp * line.backward_us[stage - pp]
                head[rank] = max(head[rank], heads[stage] - forward)
                tail[rank] = max(tail[rank], tails[stage] - backward)
    bounds = list(map(sum, zip(head, busy, tail, strict=True)))
    if schedule == "1f1b":
        bounds.extend(_laps(line, heads, tails, num_microbatches))
    return ROUNDING * max(bounds)


def _laps(line: Line, heads: list[float], tails: list[float], num_microbatches: int) -> Iterator[float]:
    """Rank r holds at most ``pp - r`` microbatches, so that so many of them share one way to the last rank and back."""
    lap, pp = 0.0, len(line.owner)
    for rank in reversed(range(pp)):
        lap += line.forward_us[rank] + line.backward_us[rank] + (2 * line.hop_us[rank] if rank + 1 < pp else 0.0)
        laps, rest = divmod(num_microbatches - 1, pp - rank)
        yield heads[rank] + (laps + 1) * lap + rest * line.backward_us[rank] + tails[rank]


def line_bytes(
    owner: tuple[int, ...],
    state_bytes: Sequence[float],
    kept_bytes: Sequence[float],
    *,
    schedule: str,
    num_microbatches: int,
) -> float:
    """A rank holds at least this at its peak: of the ranks' bounds the largest.

    Args:
        owner: The pipeline rank of each stage.
        state_bytes: Of each stage, whatever runs.
        kept_bytes: Of each stage, from the forward of a microbatch to its backward.
        schedule: Its name.
        num_microbatches: Of a step.
    """
    flights = _forwards_first(schedule, owner, num_microbatches)
    sizes = list(map(add, state_bytes, map(mul, kept_bytes, flights)))
    pp = max(owner) + 1
    if len(owner) == pp:
        return max(sizes)
    held = [0.0] * pp
    for rank, size in zip(owner, sizes, strict=True):
        held[rank] += size
    return max(held)


@cache
def _forwards_first(schedule: str, owner: tuple[int, ...], num_microbatches: int) -> tuple[int, ...]:
    pp = max(owner) + 1
    return tuple(
        forwards_first(
            schedule, pp=pp, rank=rank, chunks=len(owner) // pp, chunk=stage // pp, num_microbatches=num_microbatches
        )
        for stage, rank in enumerate(owner)
    )


def device_bytes(job: Job, allocated: float) -> int:
    """What a device needs at the least to hold so many bytes of tensors."""
    chip = job.cluster.chip
    return int(ROUNDING * allocated / (ALLOCATED_OF_RESERVED if chip.device != "cpu" else 1)) + chip.reserved_bytes


def forwards_first(schedule: str, *, pp: int, rank: int, chunks: int, chunk: int, num_microbatches: int) -> int:
    """Forwards of a chunk that a rank runs before its first backward, at the least.

    Example:
        >>> [forwards_first("1f1b", pp=4, rank=rank, chunks=1, chunk=0, num_microbatches=9) for rank in range(4)]
        [4, 3, 2, 1]
    """
    behind = pp - rank - 1
    match schedule:
        case "gpipe":
            count = num_microbatches
        case "1f1b" | "zb_h1":
            count = behind + 1
        case "zb_2p":
            count = 2 * behind + 1
        case "interleaved_1f1b" | "zb_vpp":  # groups of pp microbatches, chunk after chunk
            warmup = (2 if schedule == "interleaved_1f1b" else 1) * behind + (chunks - 1) * pp + 1
            rounds, rest = divmod(min(num_microbatches * chunks, warmup), pp * chunks)
            count = rounds * pp + min(pp, max(0, rest - chunk * pp))
        case "zb_v" | "dualpipe_v" | "dualpipe_v_split":
            count = 2 * behind + rank + 1 if chunk == 0 else rank + 1
        case _:
            count = 1  # of whatever microbatch that backward is, all its forwards came before
    return min(count, num_microbatches)
