"""``ridgeline compare``: what two jobs differ in, and what that does to memory and time."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
from cyclopts import Parameter

from ridgeline.apps.options import Overrides
from ridgeline.apps.output import give, open_console, write_json
from ridgeline.apps.reading import read_job
from ridgeline.core.diff import diff as changes_of
from ridgeline.core.errors import PlanError, Problem, SpecError
from ridgeline.core.frozen import frozen
from ridgeline.parallel.plan import Plan

if TYPE_CHECKING:
    from rich.table import Table


@frozen
class Figure:
    """One number of two plans.

    Attributes:
        section: ``step``, ``memory`` or ``time``.
        unit: GiB, ms, tokens/s or a share, which has none.
    """

    section: str
    name: str
    unit: str
    left: float
    right: float


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
    plans = _plans((left, right), options)
    changes, figures = changes_of(plans[0].job, plans[1].job), tuple(figures_of(*plans))
    if json:
        write_json({"changes": list(map(attrs.asdict, changes)), "figures": list(map(attrs.asdict, figures))})
        return 0
    if html is not None:
        from ridgeline.apps.html.comparison import comparison_page

        give(comparison_page(left, right, changes=changes, figures=figures), path=html, option="--html")
        return 0
    console = open_console()
    for change in changes:
        console.print(str(change), markup=False, highlight=False)
    console.print(table_of(left, right, figures) if changes else "The jobs are equal.")
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


def figures_of(left: Plan, right: Plan) -> Iterator[Figure]:
    """Every number of two plans, side by side; what one of them does not have counts 0 there."""
    from ridgeline.apps.report import GIB, MEMORY_COLUMNS, PART_NAMES

    times, peaks = (left.time, right.time), (left.peak, right.peak)
    yield Figure("step", "step", "ms", *(time.step_us / 1e3 for time in times))
    yield Figure("step", "tokens", "tokens/s", *(time.tokens_per_s for time in times))
    yield Figure("step", "tokens a device", "tokens/s", *(time.tokens_per_s_per_device for time in times))
    yield Figure("step", "MFU, full attention", "", *(time.mfu_full for time in times))
    yield Figure("step", "MFU, masked attention", "", *(time.mfu_causal for time in times))
    yield Figure("step", "bubble", "", *(time.bubble for time in times))
    for name in (*MEMORY_COLUMNS, "total"):
        yield Figure("memory", name, "GiB", *(getattr(peak, f"{name}_bytes") / GIB for peak in peaks))
    yield Figure("memory", "of", "GiB", *(peak.capacity_bytes / GIB for peak in peaks))
    parts = [dict(time.parts) for time in times]
    for name, words in PART_NAMES.items():
        if any(name in part for part in parts):
            yield Figure("time", words, "ms", *(part.get(name, 0.0) / 1e3 for part in parts))


def table_of(left: str, right: str, figures: tuple[Figure, ...]) -> "Table":
    """The figures, a section each for the step, the fullest rank's memory and the busiest rank's time."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in ("", "", "unit", left, right, "change"):
        table.add_column(Text(name), justify="left" if name in ("", "unit") else "right")
    for section, rows in groupby(figures, lambda figure: figure.section):
        for index, row in enumerate(rows):
            numbers = number_text(row.left), number_text(row.right), change_text(row)
            table.add_row("" if index else section, row.name, row.unit, *numbers)
        table.add_section()
    return table


def number_text(value: float) -> str:
    """A number as it is read."""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3f}"


def change_text(figure: Figure) -> str:
    """By what share the right number differs from the left one."""
    if figure.left == figure.right:
        return ""
    return f"{figure.right / figure.left - 1:+.1%}" if figure.left else "new"
