"""Branch and bound: of all branches the one with the least bound is opened first, until no open one can be better."""

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple

from ridgeline.core.errors import PlanError
from ridgeline.core.job import FullRecompute, Job
from ridgeline.parallel.check import mesh_of, stages_of
from ridgeline.parallel.held import WIDTHS
from ridgeline.parallel.plan import plan
from ridgeline.parallel.search.bounds import coster, line_of, line_us, work_us
from ridgeline.parallel.search.grid import Grid, Pipeline, Point, Scheme, Shape, job_at, pipelines, schemes, shapes
from ridgeline.parallel.search.result import Counts, Found, found_of
from ridgeline.parallel.time import hops_us

Faults = Callable[[Job], tuple[str, ...]]
"""What of a job this runtime cannot run; empty when it runs it."""


class Explored(NamedTuple):
    """What branch and bound gives; see ``SearchResult``."""

    ranked: tuple[Found, ...]
    front: tuple[Found, ...]
    counts: Counts


class _Branch(NamedTuple):
    """A part of the grid.

    Attributes:
        bound_us: None of its points takes less.
        order: Breaks ties, so that branches are never compared further.
        floor_bytes: None of its points needs less.
        at: A shape; a shape and scheme; or a point.
        points: How many it holds.
        found: The numbers of a point that was planned.
    """

    bound_us: float
    order: int
    floor_bytes: int
    at: tuple[Any, ...]
    points: int
    found: Found | None = None


def explore(job: Job, grid: Grid, *, faults: Faults, top: int, within: float) -> Explored:
    """Cover a grid.

    Args:
        job: What is laid out.
        grid: The layouts.
        faults: Points with any are left out.
        top: How many meshes to rank.
        within: Of the best step; how far the ranking and the front reach.
    """
    opened = _openers(job, grid)
    order = count()
    heap: list[_Branch] = []
    counted = dict.fromkeys(("planned", "slower", "larger", "refused", "branches"), 0)
    ranked: list[Found] = []
    meshes: set[tuple[Any, ...]] = set()
    front: list[Found] = []
    limit = job.cluster.chip.hbm_bytes
    best_us = float("inf")

    def push(branches: Iterator[_Branch]) -> None:
        for branch in branches:
            counted["branches"] += 1
            heappush(heap, branch._replace(order=next(order)))

    push(opened(()))
    points = sum(branch.points for branch in heap)
    while heap:
        branch = heappop(heap)
        if branch.bound_us > best_us * within:
            counted["slower"] += branch.points + sum(other.points for other in heap if other.found is None)
            break
        known = len(ranked) == top or _mesh(branch.at) in meshes
        smallest = front[-1].total_bytes - 1 if front and known else limit
        if branch.floor_bytes > smallest:
            counted["larger"] += branch.points
        elif branch.found is not None:
            if not known:
                ranked.append(branch.found)
                meshes.add(_mesh(branch.at))
            if not front or branch.found.total_bytes < front[-1].total_bytes:
                front.append(branch.found)
            best_us = min(best_us, branch.found.step_us)
        elif len(branch.at) < 3:
            push(opened(branch.at))
        else:
            found = _planned(job, Point(*branch.at), faults)
            if found is None:
                counted["refused"] += 1
                continue
            counted["planned"] += 1
            floor = found.total_bytes
            heappush(heap, _Branch(found.step_us, next(order), floor, branch.at, 0, found))
    bound_us = min((branch.bound_us for branch in heap), default=best_us)
    return Explored(tuple(ranked), tuple(front), Counts(points=points, bound_us=min(bound_us, best_us), **counted))


def _mesh(at: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a layout is known by: its degrees."""
    if len(at) < 2:
        return ()
    shape, scheme = at[:2]
    return shape.tp, shape.cp, shape.ep, shape.etp, scheme.pp


def _planned(job: Job, point: Point, faults: Faults) -> Found | None:
    there = job_at(job, point)
    if faults(there):
        return None
    try:
        return found_of(point, plan(there))
    except PlanError:
        return None


def _openers(job: Job, grid: Grid) -> Callable[[tuple[Any, ...]], Iterator[_Branch]]:
    """What a part of the grid divides into, each with its bounds."""
    costs_of = coster(job)
    widths = WIDTHS[job.precision.params] + WIDTHS[job.precision.grads]
    lines = {pp: tuple(pipelines(job, grid, pp)) for pp in grid.pp}
    hops: dict[tuple[Any, ...], tuple[tuple[int, ...], tuple[float, ...]]] = {}

    def opened(at: tuple[Any, ...]) -> Iterator[_Branch]:
        match at:
            case ():
                for shape in shapes(job, grid):
                    points = sum(len(lines[scheme.pp]) for scheme in schemes(job, grid, shape))
                    if points:
                        yield _Branch(work_us(job, shape, costs_of(shape, 1, None)), 0, 0, (shape,), points)
            case (shape,):
                for scheme in schemes(job, grid, shape):
                    if lines[scheme.pp]:
                        costs = costs_of(shape, scheme.pp, _least(scheme.recompute))
                        floor = int(ROUNDING_BYTES * costs.held * widths / scheme.pp)
                        us = work_us(job, shape, costs)
                        yield _Branch(us, 0, floor, (shape, scheme), len(lines[scheme.pp]))
            case (shape, scheme):
                for pipeline in lines[scheme.pp]:
                    yield _Branch(layout_us(Point(shape, scheme, pipeline)), 0, 0, (shape, scheme, pipeline), 1)

    def layout_us(point: Point) -> float:
        shape, scheme, pipeline = point
        plain = costs_of(shape, scheme.pp, _least(scheme.recompute))
        block = isinstance(scheme.recompute, FullRecompute) and scheme.recompute.method == "block"
        key = (shape, scheme.pp, pipeline.vpp, pipeline.schedule)
        num_stages = scheme.pp * pipeline.vpp
        counts = pipeline.stages or (job.model.num_layers // num_stages,) * num_stages
        if key not in hops:
            there = job_at(job, point._replace(pipeline=pipeline._replace(stages=counts)))
            stages = stages_of(there)
            owners = tuple(map(stages.owner, range(stages.num_stages)))
            hops[key] = owners, hops_us(there, mesh_of(there), stages)
        owner, hop_us = hops[key]
        recomputing = costs_of(shape, scheme.pp, FullRecompute()) if block else plain
        first = scheme.recompute.num_layers if block else 0
        line = line_of(plain, recomputing, counts=counts, first=first, owner=owner, hop_us=hop_us)
        dp = job.cluster.world_size // (shape.tp * shape.cp * scheme.pp)
        return line_us(line, schedule=pipeline.schedule or "1f1b", num_microbatches=job.batch.gbs // (shape.mbs * dp))

    return opened


ROUNDING_BYTES = 1 - 1e-9


def _least(recompute: Any) -> Any:
    """What is recomputed in every layer of a stage, whatever the stage."""
    return None if isinstance(recompute, FullRecompute) and recompute.method == "block" else recompute
