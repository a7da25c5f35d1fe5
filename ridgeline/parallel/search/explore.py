"""Branch and bound: of all branches the one with the least bound is opened first, until no open one can be better."""

from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Any, NamedTuple

from ridgeline.core.errors import PlanError
from ridgeline.core.job import Job
from ridgeline.parallel.plan import plan
from ridgeline.parallel.search.grid import Point, job_at
from ridgeline.parallel.search.narrow import Faults
from ridgeline.parallel.search.result import Counts, Found, found_of
from ridgeline.parallel.search.tree import Branch, Opener


class Explored(NamedTuple):
    """What branch and bound gives; see ``SearchResult``."""

    ranked: tuple[Found, ...]
    front: tuple[Found, ...]
    counts: Counts


class _Open(NamedTuple):
    """An open branch, or a point that was planned, whose bounds are its numbers.

    Of equal times the smaller comes first: the larger is on no front. ``order`` breaks ties of both.
    """

    bound_us: float
    floor_bytes: int
    order: int
    branch: Branch
    found: Found | None = None


class _Small(NamedTuple):
    """The same, the smallest first."""

    floor_bytes: int
    bound_us: float
    order: int
    branch: Branch
    found: Found | None = None


def explore(job: Job, opened: Opener, *, faults: Faults, top: int, within: float) -> Explored:
    """Cover a grid, the fastest branch first.

    So planned points come up in the order of their time: the first that fits is the best, the next ones rank the other
    meshes, and each that needs less memory than all before it is on the front.

    Args:
        job: What is laid out.
        opened: The tree of its grid.
        faults: Points with any are left out.
        top: How many meshes to rank.
        within: Of the best step; how far the ranking and the front reach.
    """
    order = count()
    heap = [_Open(branch.bound_us, branch.floor_bytes, next(order), branch) for branch in opened(())]
    heapify(heap)
    points = sum(item.branch.points for item in heap)
    branches, planned, refused, larger = len(heap), 0, 0, 0
    ranked: dict[tuple[int, ...], Found] = {}
    front: list[Found] = []
    cutoff_us = inf
    while heap and heap[0].bound_us <= cutoff_us:
        *_, branch, found = heappop(heap)
        mesh = _mesh(branch.at)
        only_front = len(ranked) == top or mesh in ranked
        largest = front[-1].total_bytes - 1 if front and only_front else job.cluster.chip.hbm_bytes
        if branch.floor_bytes > largest:
            larger += branch.points if found is None else 0
        elif found is not None:
            cutoff_us = min(cutoff_us, found.step_us * within)
            if not only_front:
                ranked[mesh] = found
            if not front or found.total_bytes < front[-1].total_bytes:
                front.append(found)
        elif len(branch.at) < len(Point._fields):
            for part in opened(branch.at):
                branches += 1
                heappush(heap, _Open(part.bound_us, part.floor_bytes, next(order), part))
        elif (found := _planned(job, Point(*branch.at), faults)) is None:
            refused += 1
        else:
            planned += 1
            known = branch._replace(bound_us=found.step_us, floor_bytes=found.total_bytes)
            heappush(heap, _Open(found.step_us, found.total_bytes, next(order), known, found))
    slower = sum(item.branch.points for item in heap if item.found is None)
    bound_us = min((item.bound_us for item in heap if item.found is None), default=cutoff_us)
    counts = Counts(
        points=points,
        planned=planned,
        slower=slower,
        larger=larger,
        refused=refused,
        branches=branches,
        bound_us=bound_us,
    )
    return Explored(tuple(ranked.values()), tuple(front), counts)


def least_memory(job: Job, opened: Opener, *, faults: Faults) -> Found | None:
    """The layout that needs the least memory, the fastest of equals; None where no layout has a plan."""
    order = count()
    heap = [_Small(branch.floor_bytes, branch.bound_us, next(order), branch) for branch in opened(())]
    heapify(heap)
    while heap:
        *_, branch, found = heappop(heap)
        if found is not None:
            return found
        if len(branch.at) < len(Point._fields):
            for part in opened(branch.at):
                heappush(heap, _Small(part.floor_bytes, part.bound_us, next(order), part))
        elif (found := _planned(job, Point(*branch.at), faults)) is not None:
            heappush(heap, _Small(found.total_bytes, found.step_us, next(order), branch, found))
    return None


def _mesh(at: tuple[Any, ...]) -> tuple[int, ...]:
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
