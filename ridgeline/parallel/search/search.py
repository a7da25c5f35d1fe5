"""``search(job)``: the fastest layout that fits."""

import attrs

from ridgeline.core.errors import PlanError
from ridgeline.core.job import Job
from ridgeline.parallel.search.around import neighbours_of, shortage_of
from ridgeline.parallel.search.explore import explore
from ridgeline.parallel.search.grid import Grid, grid_of
from ridgeline.parallel.search.narrow import Faults, empty_problems, layout_faults, narrowed
from ridgeline.parallel.search.result import SearchResult
from ridgeline.parallel.search.tree import opener


def search(
    job: Job,
    grid: Grid | None = None,
    *,
    lowering_faults: Faults = lambda job: (),
    planned_only: bool = False,
    top: int = 5,
    within: float = 1.05,
) -> SearchResult:
    """Find the layout of a grid that takes the least time of those that fit.

    Time and memory are those of ``plan``: the answer is that of planning every point of the grid.

    Args:
        job: What is laid out; its own layout, microbatch and recomputation do not matter.
        grid: The layouts; None takes ``grid_of(job)``.
        lowering_faults: What a runtime cannot run of a job, ``ridgeline.lowering_faults`` for this one. Layouts that
            it faults, beyond what it faults in the job's model, are left out, unless ``planned_only``.
        planned_only: Keep layouts that are only planned, and mark them.
        top: How many meshes to rank.
        within: How far the ranking and the front reach, times the best step.

    Raises:
        PlanError: The grid holds no layout; what keeps its values out is named.

    Example:
        >>> from ridgeline.models.jobs import preset
        >>> result = search(preset("llama2-7b"), top=1, within=1.0)
        >>> result.best.fits, result.counts.points > 1000
        (True, True)
    """
    faults = layout_faults(job, lowering_faults)
    kept_out = (lambda there: ()) if planned_only else faults
    grid = narrowed(job, grid or grid_of(job), faults=kept_out)
    opened = opener(job, grid)
    explored = explore(job, opened, faults=kept_out, top=top, within=within)
    if not explored.counts.points:
        raise PlanError(empty_problems(job, grid))
    ranked, front = (
        tuple(attrs.evolve(found, lowering_faults=lowering_faults(found.job)) for found in several)
        for several in (explored.ranked, explored.front)
    )
    best = front[0] if front else None
    return SearchResult(
        grid=grid,
        best=best,
        ranked=ranked,
        front=front,
        front_within=within,
        neighbours=tuple(neighbours_of(job, grid, opened, best)) if best else (),
        counts=explored.counts,
        shortage=None if best else shortage_of(job, grid, faults=kept_out),
    )
