"""The grid as a tree: shapes, their schemes, their pipelines; each branch with bounds on all the points in it."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from ridgeline.core.job import FullRecompute, Job
from ridgeline.parallel.check import mesh_of
from ridgeline.parallel.held import WIDTHS
from ridgeline.parallel.search.bounds import ROUNDING, coster, line_of, line_us, work_us
from ridgeline.parallel.search.grid import (
    Grid,
    Pipeline,
    Point,
    Recompute,
    Scheme,
    Shape,
    job_at,
    pipelines,
    schemes,
    shapes,
)
from ridgeline.parallel.stages import StageMap
from ridgeline.parallel.time import hops_us


class Branch(NamedTuple):
    """A part of a grid.

    Attributes:
        bound_us: None of its points takes less time.
        floor_bytes: None of its points needs less memory.
        points: How many it holds.
        at: ``(shape,)``, ``(shape, scheme)`` or ``(shape, scheme, pipeline)``.
    """

    bound_us: float
    floor_bytes: int
    points: int
    at: tuple[Any, ...]


Opener = Callable[[tuple[Any, ...]], Iterator[Branch]]
"""What a part of a grid divides into; ``()`` is all of it."""


def opener(job: Job, grid: Grid) -> Opener:
    """The tree of a grid, worked out as it is opened."""
    costs_of = coster(job)
    lines = {pp: tuple(pipelines(job, grid, pp)) for pp in grid.pp}
    widths = WIDTHS[job.precision.params] + WIDTHS[job.precision.grads]

    def opened(at: tuple[Any, ...]) -> Iterator[Branch]:
        match at:
            case ():
                for shape in shapes(job, grid):
                    if points := sum(len(lines[scheme.pp]) for scheme in schemes(job, grid, shape)):
                        yield Branch(work_us(job, shape, costs_of(shape, 1, None)), 0, points, (shape,))
            case (shape,):
                for scheme in schemes(job, grid, shape):
                    if points := len(lines[scheme.pp]):
                        costs = costs_of(shape, scheme.pp, _everywhere(scheme.recompute))
                        floor = int(ROUNDING * costs.held * widths / scheme.pp)
                        yield Branch(work_us(job, shape, costs), floor, points, (shape, scheme))
            case (shape, scheme):
                for pipeline in lines[scheme.pp]:
                    yield Branch(pipeline_us(shape, scheme, pipeline), 0, 1, (shape, scheme, pipeline))

    def pipeline_us(shape: Shape, scheme: Scheme, pipeline: Pipeline) -> float:
        owner, hop_us = place(shape, scheme.pp, pipeline.vpp, pipeline.schedule)
        num_stages = len(owner)
        counts = pipeline.stages or (job.model.num_layers // num_stages,) * num_stages
        plain = costs_of(shape, scheme.pp, _everywhere(scheme.recompute))
        first, recomputing = 0, plain
        if isinstance(scheme.recompute, FullRecompute) and scheme.recompute.method == "block":
            first, recomputing = scheme.recompute.num_layers, costs_of(shape, scheme.pp, FullRecompute())
        line = line_of(plain, recomputing, counts=counts, first=first, owner=owner, hop_us=hop_us)
        dp = job.cluster.world_size // (shape.tp * shape.cp * scheme.pp)
        return line_us(line, schedule=pipeline.schedule or "1f1b", num_microbatches=job.batch.gbs // (shape.mbs * dp))

    @cache
    def place(shape: Shape, pp: int, vpp: int, schedule: str | None) -> tuple[Sequence[int], Sequence[float]]:
        """The owner of each stage, and the time of a transfer over each boundary."""
        there = job_at(job, Point(shape, Scheme(pp, None, True), Pipeline(vpp, schedule, None)))
        none = ((),) * (pp * there.layout.chunks)
        stages = StageMap(
            pp=pp, vpp=there.layout.chunks, layers=none, noop_layers=none, placement=there.layout.placement
        )
        return [stages.owner(stage) for stage in range(stages.num_stages)], hops_us(there, mesh_of(there), stages)

    return opened


def _everywhere(recompute: Recompute) -> Recompute:
    """What is recomputed in every layer, whatever its stage."""
    return None if isinstance(recompute, FullRecompute) and recompute.method == "block" else recompute
