"""``ridgeline compare``: what two jobs differ in, and what that does to memory and time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import attrs
from cyclopts import Parameter

from ridgeline.apps.options import Overrides
from ridgeline.apps.output import give, open_console, write_json
from ridgeline.apps.reading import read_job
from ridgeline.core.diff import diff as changes_of
from ridgeline.core.errors import PlanError, Problem, SpecError
from ridgeline.parallel.plan import Plan


def compare(
    left: str,
    right: str,
    /,
    *options: Overrides,
    json: Annotated[bool, Parameter(negative="")] = False,
    html: Path | None = None,
) -> int:
    """Compare two jobs' plans, left -> right: the fields that differ, and what they do to memory and time.

    Memory is that of each plan's fullest rank, time that of its busiest. Both jobs are as planned, repairs included.

    Args:
        left: A job file, a preset or a model folder.
        right: Another.
        options: Fields of both jobs, as --layout.tp 8.
        json: Print the numbers as JSON instead.
        html: Write them to this file instead, as one page that needs no other.
    """
    if json and html:
        raise SpecError(Problem("--json", json, "excludes --html", "ask for one at a time"))
    from ridgeline.apps.reports.comparison import comparison_table, figures_of

    plans = _plans((left, right), options)
    changes, figures = changes_of(plans[0].job, plans[1].job), tuple(figures_of(*plans))
    if json:
        write_json({"changes": list(map(attrs.asdict, changes)), "figures": list(map(attrs.asdict, figures))})
        return 0
    if html is not None:
        from ridgeline.apps.reports.html.comparison import comparison_page

        give(comparison_page(left, right, changes=changes, figures=figures), path=html, option="--html")
        return 0
    console = open_console()
    for change in changes:
        console.print(str(change), markup=False, highlight=False)
    console.print(comparison_table(left, right, figures) if changes else "The jobs are equal.")
    return 0


def _plans(jobs: tuple[str, str], options: Sequence[str]) -> list[Plan]:
    """Both plans; of two that do not exist the faults of both are told, each with its job's name."""
    from ridgeline.apps.planning import plan_or_advise

    plans: list[Plan] = []
    problems: list[Problem] = []
    for job in dict.fromkeys(jobs):
        try:
            plans.append(plan_or_advise(read_job(job, options).job))
        except (SpecError, PlanError) as error:
            problems += (attrs.evolve(one, path=f"{job}: {one.path}") for one in error.problems)
    if problems:
        raise PlanError(problems)
    return [plans[0], plans[-1]]
