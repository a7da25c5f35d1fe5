"""Planning for a command: where no plan exists, the nearest layouts that have one are named too."""

from ridgeline.core.errors import PlanError, Problem
from ridgeline.core.job import Job
from ridgeline.parallel.plan import Plan, plan


def plan_or_advise(job: Job) -> Plan:
    """The plan of a job.

    Raises:
        PlanError: Every rule broken and, where a change of layout helps, the nearest legal layouts.
    """
    try:
        return plan(job)
    except PlanError as error:
        raise PlanError((*error.problems, *advice(job))) from None


def advice(job: Job) -> tuple[Problem, ...]:
    """One more problem, whose way out is the nearest legal layouts; none where no layout helps."""
    from ridgeline.core.diff import diff
    from ridgeline.parallel.nearest import layout_problems, nearest_layouts

    if not layout_problems(job):
        return ()
    ways = [diff(job.layout, layout) for layout in nearest_layouts(job)]
    if not ways:
        return ()
    spelled = ["layout." + ", ".join(f"{change.path}={change.right}" for change in changes) for changes in ways]
    degrees = ("tp", "pp", "vpp", "cp", "ep", "etp")
    asked = " ".join(f"{name}={getattr(job.layout, name)}" for name in degrees if getattr(job.layout, name) > 1)
    return (Problem("layout", asked or "1 rank", "is impossible", f"nearest that are legal: {' | '.join(spelled)}"),)
