"""What surrounds the best layout, and, where nothing fits, what lacks."""

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from ridgeline.core.errors import PlanError
from ridgeline.core.job import FullRecompute, Job
from ridgeline.parallel.plan import plan
from ridgeline.parallel.search.explore import least_memory
from ridgeline.parallel.search.grid import PATHS, Grid, Point, changed, grid_of, job_at, shapes
from ridgeline.parallel.search.narrow import Faults, narrowed
from ridgeline.parallel.search.result import Found, Neighbour, Shortage, found_of
from ridgeline.parallel.search.tree import Branch, Opener, opener

MOST_DOUBLINGS = 6
"""Of nodes, that are tried where nothing fits."""
DEGREES = ("tp", "cp", "ep", "etp", "mbs", "pp", "vpp")
"""Axes of which only the next values below and above are neighbours; of the others all are."""


def neighbours_of(job: Job, grid: Grid, opened: Opener, best: Found) -> Iterator[Neighbour]:
    """Every layout that differs from the best in one axis, and in what has to follow it."""
    within = frozenset(shapes(job, grid))
    for axis in PATHS:
        for value in _near(grid, axis, best.point):
            if changed(best.point, axis, value).shape in within:
                yield _neighbour(job, opened, best, axis, value)


def _near(grid: Grid, axis: str, point: Point) -> list[Any]:
    here = next(getattr(part, axis) for part in point if axis in part._fields)
    values = list(getattr(grid, axis) or ())
    if axis not in DEGREES:
        return [value for value in values if value != here]
    below = [value for value in values if value < here]
    above = [value for value in values if value > here]
    return [*below[-1:], *above[:1]]


def _neighbour(job: Job, opened: Opener, best: Found, axis: str, value: Any) -> Neighbour:
    found, refused = _fastest(job, tuple(_moved(opened, best.point, axis, value)))
    if found is None:
        return Neighbour(axis=axis, value=value, found=None, refused=refused)
    slower, over_bytes = found.step_us / best.step_us - 1, found.total_bytes - found.capacity_bytes
    return Neighbour(axis=axis, value=value, found=found, slower=slower, over_bytes=over_bytes)


def _fastest(job: Job, leaves: Sequence[Branch]) -> tuple[Found | None, str]:
    """The fastest of some layouts that fits, else the smallest; where none has a plan, why."""
    capacity = job.cluster.chip.hbm_bytes
    fastest: Found | None = None
    smallest: Found | None = None
    refused = "is no other layout, or its degrees do not divide what they must"
    for leaf in sorted(leaves, key=lambda leaf: (leaf.floor_bytes > capacity, leaf.bound_us)):
        if leaf.floor_bytes > capacity or (fastest is not None and leaf.bound_us >= fastest.step_us):
            break
        found, refused = _planned(job, leaf, refused)
        if found is not None and found.fits and (fastest is None or found.step_us < fastest.step_us):
            fastest = found
        if found is not None and (smallest is None or found.total_bytes < smallest.total_bytes):
            smallest = found
    if fastest is not None:
        return fastest, ""
    for leaf in sorted(leaves, key=lambda leaf: leaf.floor_bytes):
        if smallest is not None and leaf.floor_bytes >= smallest.total_bytes:
            break
        found, refused = _planned(job, leaf, refused) if leaf.floor_bytes > capacity else (None, refused)
        if found is not None and (smallest is None or found.total_bytes < smallest.total_bytes):
            smallest = found
    return smallest, refused


def _planned(job: Job, leaf: Branch, refused: str) -> tuple[Found | None, str]:
    point = Point(*leaf.at)
    try:
        return found_of(point, plan(job_at(job, point))), refused
    except PlanError as error:
        return None, str(error.problems[0])


def _moved(opened: Opener, point: Point, axis: str, value: Any) -> Iterator[Branch]:
    """The point with an axis at another value; stages and schedule follow in every way that the grid has."""
    shape, scheme, pipeline = changed(point, axis, value)
    for branch in opened((shape,)):
        if branch.at == (shape, scheme):
            for leaf in opened(branch.at):
                other = leaf.at[2]
                follows = axis == "pp" or (axis in ("vpp", "schedule") and getattr(other, axis) == value)
                if follows or other == pipeline:
                    yield leaf


def shortage_of(job: Job, grid: Grid, *, faults: Faults) -> Shortage | None:
    """The layout that needs the least memory, and the nodes on which one fits; None where no layout has a plan."""
    least = least_memory(job, opener(job, grid), faults=faults)
    if least is None:
        return None
    fitting = (nodes for nodes, other in _on_more_nodes(job, grid, faults) if other is not None and other.fits)
    return Shortage(least=least, over_bytes=least.total_bytes - least.capacity_bytes, nodes=next(fitting, None))


def _on_more_nodes(job: Job, grid: Grid, faults: Faults) -> Iterator[tuple[int, Found | None]]:
    """On 2, 4, 8, ... times as many nodes, of the layouts that keep the least the one that needs the least memory."""
    given = {axis: getattr(grid, axis) for axis in grid.given}
    for doublings in range(1, MOST_DOUBLINGS + 1):
        nodes = job.cluster.nodes << doublings
        there = attrs.evolve(job, cluster=attrs.evolve(job.cluster, nodes=nodes))
        wider = narrowed(there, grid_of(there, **given), faults=faults)
        frugal = attrs.evolve(
            wider,
            mbs=wider.mbs[:1],
            recompute=(FullRecompute(),) if FullRecompute() in wider.recompute else wider.recompute,
            distributed_optimizer=(any(wider.distributed_optimizer),),
        )
        yield nodes, least_memory(there, opener(there, frugal), faults=faults)
