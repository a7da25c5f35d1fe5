"""The grid as a tree: shapes, their schemes, their pipelines; each branch with bounds on all the points in it."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

from ridgeline.core.job import FullRecompute, Job
from ridgeline.parallel.check import mesh_of
from ridgeline.parallel.search.bounds import ROUNDING, Line, device_bytes, line_bytes, line_us, mean_us
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
from ridgeline.parallel.search.units import units_of
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
    units = units_of(job)
    lines = {pp: tuple(pipelines(job, grid, pp)) for pp in grid.pp}

    def opened(at: tuple[Any, ...]) -> Iterator[Branch]:
        match at:
            case ():
                for shape in shapes(job, grid):
                    if points := sum(len(lines[scheme.pp]) for scheme in schemes(job, grid, shape)):
                        running = units.running(shape, 1, None)
                        us = mean_us(job, shape, running.forward_us.total + running.backward_us.total)
                        yield Branch(us, 0, points, (shape,))
            case (shape,):
                for scheme in schemes(job, grid, shape):
                    if points := len(lines[scheme.pp]):
                        running = units.running(shape, scheme.pp, _everywhere(scheme.recompute))
                        lasting = units.lasting(shape, scheme)
                        us = mean_us(job, shape, running.forward_us.total + running.backward_us.total)
                        smallest = FullRecompute() if _is_block(scheme.recompute) else scheme.recompute
                        kept = units.running(shape, scheme.pp, smallest).kept_bytes.total
                        size = device_bytes(job, (lasting.state_bytes.total + kept) / scheme.pp)
                        yield Branch(us + ROUNDING * lasting.overhead_us, size, points, (shape, scheme))
            case (shape, scheme):
                for pipeline in lines[scheme.pp]:
                    yield Branch(*bounds(shape, scheme, pipeline), 1, (shape, scheme, pipeline))

    def bounds(shape: Shape, scheme: Scheme, pipeline: Pipeline) -> tuple[float, int]:
        owner, hop_us = place(shape, scheme.pp, pipeline.vpp, pipeline.schedule)
        cuts = list(accumulate(pipeline.stages or even(job, len(owner)), initial=0))
        plain = units.running(shape, scheme.pp, _everywhere(scheme.recompute))
        lasting = units.lasting(shape, scheme)
        backward_us, kept_bytes = plain.backward_us.by_stage(cuts), plain.kept_bytes.by_stage(cuts)
        if isinstance(scheme.recompute, FullRecompute) and scheme.recompute.method == "block":
            whole, first = units.running(shape, scheme.pp, FullRecompute()), scheme.recompute.num_layers
            backward_us = plain.backward_us.by_stage(cuts, first=first, of_first=whole.backward_us)
            kept_bytes = plain.kept_bytes.by_stage(cuts, first=first, of_first=whole.kept_bytes)
        line = Line(
            owner=owner,
            hop_us=hop_us,
            forward_us=plain.forward_us.by_stage(cuts),
            backward_us=backward_us,
            kept_bytes=kept_bytes,
            state_bytes=lasting.state_bytes.by_stage(cuts),
        )
        dp = job.cluster.world_size // (shape.tp * shape.cp * scheme.pp)
        how = {"schedule": pipeline.schedule or "1f1b", "num_microbatches": job.batch.gbs // (shape.mbs * dp)}
        return line_us(line, **how) + ROUNDING * lasting.overhead_us, line_bytes(job, line, **how)

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


def even(job: Job, num_stages: int) -> tuple[int, ...]:
    """An even division of the layers."""
    return (job.model.num_layers // num_stages,) * num_stages


def _is_block(recompute: Recompute) -> bool:
    return isinstance(recompute, FullRecompute) and recompute.method == "block"


def _everywhere(recompute: Recompute) -> Recompute:
    """What is recomputed in every layer, whatever its stage."""
    return None if _is_block(recompute) else recompute
