"""What a layout takes and holds at the least, provably below what its plan says.

A layer's time on a rank does not depend on the stage it lies on, so it is told once for a shape and a scheme and shared
by every division into stages. From those times:

    a shape     the ranks of a pipeline are busy for all layers together, so one of them for the mean
    a layout    a rank waits for the stages before its first one, is busy, and the last gradient still has to pass
                those stages; under 1F1B a microbatch must also come back before the next may leave

Sums are taken in another order than the plan takes them, hence ``ROUNDING``.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

from ridgeline.core.job import Job
from ridgeline.parallel.check import mesh_of
from ridgeline.parallel.held import plan_held
from ridgeline.parallel.search.grid import Pipeline, Point, Recompute, Scheme, Shape, job_at
from ridgeline.parallel.shards import plan_shards
from ridgeline.parallel.stages import StageMap
from ridgeline.parallel.time import stage_parts
from ridgeline.parallel.work import stage_work

ROUNDING = 1 - 1e-9
WHOLE_BACKWARD = ("1f1b", "interleaved_1f1b", "gpipe")
"""Schedules that run a backward as one action, so that a rank's last action is one that others wait for."""


class Costs(NamedTuple):
    """What the parts of a model cost one rank for one microbatch: sums over the layers before each, and the two ends.

    Attributes:
        forward_us, backward_us: Of layers; entry i is the sum of the first i.
        elements: Weights of layers, likewise.
        before, after: ``(forward_us, backward_us, elements)`` of the embedding, and of what follows the layers.
    """

    forward_us: Sequence[float]
    backward_us: Sequence[float]
    elements: Sequence[float]
    before: tuple[float, float, float]
    after: tuple[float, float, float]

    @property
    def work_us(self) -> float:
        """Of one microbatch, on all its ranks together."""
        return sum((self.forward_us[-1], self.backward_us[-1], *self.before[:2], *self.after[:2]))

    @property
    def held(self) -> float:
        """Weights of all stages together."""
        return self.elements[-1] + self.before[2] + self.after[2]


Coster = Callable[[Shape, int, Recompute], Costs]


def coster(job: Job) -> Coster:
    """Costs of the layers of a job, each worked out once."""
    kinds = list(dict.fromkeys(run.block for run in job.model.blocks))
    layers = job.model.layers()
    firsts = [layers.index(kind) for kind in kinds]
    kind_of = [kinds.index(block) for block in layers]
    of_kinds = StageMap(
        pp=len(kinds) + 2,
        vpp=1,
        layers=((), *((layer,) for layer in firsts), ()),
        noop_layers=((),) * (len(kinds) + 2),
        mtp=job.model.mtp,
    )
    pp_is_slowest = job.layout.order.endswith("-pp")

    @cache
    def costs(shape: Shape, pp: int, recompute: Recompute) -> Costs:
        there = job_at(job, Point(shape, Scheme(pp, recompute, True), Pipeline(1, None, None)))
        mesh = mesh_of(there)
        held = plan_held(there, mesh=mesh, stages=of_kinds, shards=plan_shards(there.model, there.layout))
        forwards, backwards = stage_parts(there, mesh=mesh, held=held, work=stage_work(there, of_kinds))
        units = [(sum(f), sum(b), one.elements) for f, b, one in zip(forwards, backwards, held, strict=True)]
        if job.model.tied_embeddings:  # whether the head's stage holds the embedding once more depends on the stages
            units[-1] = (units[-1][0], units[-1][1] - backwards[-1].accumulate, 0)
        by_layer = [units[1 + kind] for kind in kind_of]
        forward_us, backward_us, elements = (
            list(accumulate((unit[part] for unit in by_layer), initial=0)) for part in range(3)
        )
        return Costs(forward_us, backward_us, elements, units[0], units[-1])

    # The groups of a layer's collectives lie alike for every pp, where pp varies slowest.
    return lambda shape, pp, recompute: costs(shape, 1 if pp_is_slowest else pp, recompute)


def work_us(job: Job, shape: Shape, costs: Costs) -> float:
    """A step takes at least what its ranks have to do, divided evenly."""
    samples_us = job.batch.gbs / shape.mbs * costs.work_us
    return ROUNDING * samples_us * shape.tp * shape.cp / job.cluster.world_size


class Line(NamedTuple):
    """A division of the layers into stages, each with its time for one microbatch.

    Attributes:
        owner: The pipeline rank of each stage.
        hop_us: Of the transfer over each boundary of stages, 0 within a rank.
    """

    owner: Sequence[int]
    forward_us: Sequence[float]
    backward_us: Sequence[float]
    hop_us: Sequence[float]


def line_of(plain: Costs, recomputing: Costs, *, counts: Sequence[int], first: int | None, **place: Sequence) -> Line:
    """The stages of these counts of layers.

    Args:
        plain, recomputing: Costs of layers as they are, and recomputed.
        counts: Layers of each stage.
        first: How many layers of each stage are recomputed, its first ones; None for all.
        place: ``owner`` and ``hop_us`` of the line.
    """
    forward, backward, start = [], [], 0
    for count in counts:
        middle = start + (count if first is None else min(count, first))
        stop = start + count
        forward.append(plain.forward_us[stop] - plain.forward_us[start])
        backward.append(
            recomputing.backward_us[middle]
            - recomputing.backward_us[start]
            + plain.backward_us[stop]
            - plain.backward_us[middle]
        )
        start = stop
    forward[0] += plain.before[0]
    backward[0] += plain.before[1]
    forward[-1] += plain.after[0]
    backward[-1] += plain.after[1]
    return Line(forward_us=forward, backward_us=backward, **place)


def line_us(line: Line, *, schedule: str, num_microbatches: int) -> float:
    """A schedule takes at least this, whatever its order: of the ranks' bounds the largest."""
    lowest: dict[int, int] = {}
    busy: dict[int, float] = {}
    for stage, rank in enumerate(line.owner):
        lowest.setdefault(rank, stage)
        busy[rank] = busy.get(rank, 0.0) + line.forward_us[stage] + line.backward_us[stage]
    heads = list(accumulate((f + h for f, h in zip(line.forward_us, line.hop_us, strict=False)), initial=0.0))
    tails = list(accumulate((b + h for b, h in zip(line.backward_us, line.hop_us, strict=False)), initial=0.0))
    if schedule not in WHOLE_BACKWARD:
        tails = [0.0] * len(tails)
    bounds = [heads[stage] + num_microbatches * busy[rank] + tails[stage] for rank, stage in lowest.items()]
    if schedule == "1f1b":
        bounds.extend(_laps(line, heads, tails, num_microbatches))
    return ROUNDING * max(bounds)


def _laps(line: Line, heads: list[float], tails: list[float], num_microbatches: int) -> Iterator[float]:
    """Rank r holds at most ``pp - r`` microbatches, so that so many of them share one way to the last rank and back."""
    lap = 0.0
    pp = len(line.owner)
    for rank in reversed(range(pp)):
        lap += line.forward_us[rank] + line.backward_us[rank] + (2 * line.hop_us[rank] if rank + 1 < pp else 0.0)
        laps, rest = divmod(num_microbatches - 1, pp - rank)
        yield heads[rank] + (laps + 1) * lap + rest * line.backward_us[rank] + tails[rank]
