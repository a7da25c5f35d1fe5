"""The grid as a tree: shapes, their schemes, their pipelines; each branch with bounds on all the points in it."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import attrs

from ridgeline.core.job import FullRecompute, Job
from ridgeline.parallel.of_job import mesh_of
from ridgeline.parallel.search.bounds import ROUNDING, Line, device_bytes, line_bytes, line_us, mean_us
from ridgeline.parallel.search.grid import (
    Grid,
    Pipeline,
    Point,
    Scheme,
    Shape,
    first_layers,
    job_at,
    pipelines,
    schemes,
    shapes,
)
from ridgeline.parallel.search.units import Running, units_of
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


class _Way(NamedTuple):
    """A pipeline, and where it cuts the layers.

    Attributes:
        cuts: Layers before each stage, and all of them.
        owner: The pipeline rank of each stage.
    """

    pipeline: Pipeline
    cuts: tuple[int, ...]
    owner: tuple[int, ...]


def opener(job: Job, grid: Grid) -> Opener:
    """The tree of a grid, worked out as it is opened."""
    units = units_of(job)
    capacity = job.cluster.chip.hbm_bytes

    @cache
    def ways_of(pp: int, first: int) -> tuple[_Way, ...]:
        return tuple(
            _Way(pipeline, tuple(accumulate(counts, initial=0)), owners(pp, pipeline.vpp, pipeline.schedule))
            for pipeline, counts in pipelines(job, grid, pp, first=first)
        )

    def ways(scheme: Scheme) -> tuple[_Way, ...]:
        return ways_of(scheme.pp, first_layers(scheme.recompute))

    @cache
    def owners(pp: int, vpp: int, schedule: str | None) -> tuple[int, ...]:
        layout = attrs.evolve(job.layout, pp=pp, vpp=vpp, schedule=schedule)
        none = ((),) * (pp * layout.chunks)
        stages = StageMap(pp=pp, vpp=layout.chunks, layers=none, noop_layers=none, placement=layout.placement)
        return tuple(map(stages.owner, range(stages.num_stages)))

    @cache
    def hops(shape: Shape, pp: int, owner: tuple[int, ...]) -> tuple[float, ...]:
        there = job_at(job, Point(shape, Scheme(pp), Pipeline(1, None, None)))
        return hops_us(there, mesh_of(there), owner)

    def opened(at: tuple[Any, ...]) -> Iterator[Branch]:
        match at:
            case ():
                for shape in shapes(job, grid):
                    if points := sum(len(ways(one)) for one in schemes(job, grid, shape)):
                        yield Branch(mean_us(job, shape, units.running(shape, Scheme(1))), 0, points, (shape,))
            case (shape,):
                for scheme in schemes(job, grid, shape):
                    if points := len(ways(scheme)):
                        yield Branch(*scheme_bounds(shape, scheme), points, (shape, scheme))
            case (shape, scheme):
                yield from leaves(shape, scheme)

    def scheme_bounds(shape: Shape, scheme: Scheme) -> tuple[float, int]:
        plain, whole = runnings(shape, scheme)
        lasting = units.lasting(shape, scheme)
        size = device_bytes(job, (lasting.state_bytes.total + whole.kept_bytes.total) / scheme.pp)
        return mean_us(job, shape, plain) + ROUNDING * lasting.overhead_us, size

    def runnings(shape: Shape, scheme: Scheme) -> tuple[Running, ...]:
        """Of layers beyond the first ones of a stage, and of the first ones."""
        if first_layers(scheme.recompute):
            return tuple(units.running(shape, scheme._replace(recompute=one)) for one in (None, FullRecompute()))
        return (units.running(shape, scheme),) * 2

    def leaves(shape: Shape, scheme: Scheme) -> Iterator[Branch]:
        plain, whole = runnings(shape, scheme)
        first = first_layers(scheme.recompute)
        lasting = units.lasting(shape, scheme)
        scheme_us, _ = scheme_bounds(shape, scheme)
        dp = job.cluster.world_size // (shape.tp * shape.cp * scheme.pp)
        num_microbatches = job.batch.gbs // (shape.mbs * dp)
        for pipeline, cuts, owner in ways(scheme):
            how = {"schedule": pipeline.schedule or "1f1b", "num_microbatches": num_microbatches}
            kept = plain.kept_bytes.by_stage(cuts, first, whole.kept_bytes)
            size = device_bytes(job, line_bytes(owner, lasting.state_bytes.by_stage(cuts), kept, **how))
            us = 0.0
            if size <= capacity and job.memory.recompute_when == "backward":  # else what a rank waits for is not told
                line = Line(
                    owner=owner,
                    hop_us=hops(shape, scheme.pp, owner),
                    forward_us=plain.forward_us.by_stage(cuts),
                    backward_us=plain.backward_us.by_stage(cuts, first, whole.backward_us),
                )
                us = line_us(line, **how) + ROUNDING * lasting.overhead_us
            yield Branch(max(scheme_us, us), size, 1, (shape, scheme, pipeline))

    return opened
