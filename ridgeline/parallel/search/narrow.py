"""A grid without the values that could not be chosen whatever the other axes say."""

from collections.abc import Callable
from typing import Any

import attrs

from ridgeline.core.errors import Problem
from ridgeline.core.job import Job
from ridgeline.parallel.check import job_problems
from ridgeline.parallel.known_wrong import refusals
from ridgeline.parallel.search.grid import PATHS, Grid, LeftOut, Pipeline, Point, Scheme, Shape, changed, job_at

Faults = Callable[[Job], tuple[str, ...]]
"""What of a job a runtime cannot run, a sentence each; empty when it runs it."""

ALONE = Point(Shape(1, 1, "ring", False, 1, 1, 1), Scheme(1), Pipeline(1, None, None))


def layout_faults(job: Job, faults: Faults) -> Faults:
    """The faults of layouts, without those that every layout of a job has."""
    always = frozenset(faults(job_at(job, ALONE)))
    return lambda there: tuple(fault for fault in faults(there) if fault not in always)


def narrowed(job: Job, grid: Grid, *, faults: Faults) -> Grid:
    """The grid without values that are refused even with every other axis left alone, and why they are left out."""
    left_out: list[LeftOut] = []
    kept: dict[str, tuple[Any, ...]] = {}
    for axis in PATHS:
        values = getattr(grid, axis)
        if axis == "stages":
            continue
        reasons = {value: _refusal(job_at(job, changed(ALONE, axis, value)), faults) for value in values}
        for why in dict.fromkeys(filter(None, reasons.values())):
            left_out.append(LeftOut(axis, tuple(value for value in values if reasons[value] == why), why))
        kept[axis] = tuple(value for value in values if not reasons[value])
    return attrs.evolve(grid, **kept, left_out=(*grid.left_out, *left_out))


def empty_problems(job: Job, grid: Grid) -> tuple[Problem, ...]:
    """Why a grid holds no layout: what breaks a rule with every other axis left alone, else what it must divide."""
    world, gbs = job.cluster.world_size, job.batch.gbs
    left_out = [Problem(PATHS[one.axis], one.values, one.why) for one in grid.left_out if not getattr(grid, one.axis)]
    alone = [
        problem
        for axis in grid.given
        for value in getattr(grid, axis) or ()
        if axis != "stages"
        for problem in job_problems(job_at(job, changed(ALONE, axis, value)))
        if problem.path.startswith(PATHS[axis])
    ]
    rule = (
        f"no tp*cp*pp of it divides world_size={world} so that mbs*dp divides gbs={gbs} and etp*ep the ranks of a stage"
    )
    return (*left_out, *alone) or (Problem("grid", ", ".join(grid.given) or "derived", rule, "widen an axis"),)


def _refusal(job: Job, faults: Faults) -> str:
    """The first fault, without the value that it names, so that values with one fault are told together."""
    refused = [problem.rule for problem in refusals(job)]
    return next(iter((*refused, *(fault.partition(": ")[2] or fault for fault in faults(job)))), "")
