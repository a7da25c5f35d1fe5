"""``ridgeline plan``: what every rank of a job will do, hold and send."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ridgeline.apps.edges import edge
from ridgeline.apps.options import Overrides
from ridgeline.apps.output import give, open_console, write_json
from ridgeline.apps.reading import read_job
from ridgeline.core.errors import Problem, SpecError


def plan(
    job: str,
    /,
    *options: Overrides,
    json: Annotated[bool, Parameter(negative="")] = False,
    html: Path | None = None,
    trace: Path | None = None,
    verify_rank: int | None = None,
) -> int:
    """Plan a job and print the report: memory by stage, time by component, collectives, kernels, and every assumption.

    Args:
        job: A job file, a preset or a model folder.
        options: Fields of the job, as --layout.tp 8.
        json: Print the numbers as JSON instead, with the whole job.
        html: Write the report to this file instead, as one page that needs no other and no network.
        trace: Write one step to this file instead, as a Chrome trace: for Perfetto or MindStudio Insight.
        verify_rank: Instead, build this rank with Megatron-core and compare every parameter with the plan.
    """
    from ridgeline.apps.planning import plan_or_advise

    if sum(map(bool, (json, html or trace, verify_rank is not None))) > 1:
        raise SpecError(Problem("--json", json, "excludes --html, --trace and --verify-rank", "ask for one at a time"))
    chosen = read_job(job, options)
    planned = plan_or_advise(chosen.job)
    if verify_rank is not None:
        return edge("ridgeline.apps.runtime.verify:verify_rank")(planned, verify_rank)
    if html is not None:
        from ridgeline.apps.reports.html.page import plan_page

        give(plan_page(planned, chosen=chosen.notes), path=html, option="--html")
    if trace is not None:
        from ridgeline.apps.reports.planned_events import trace_text

        give(trace_text(planned), path=trace, option="--trace")
    if html or trace:
        return 0
    if json:
        from ridgeline.core.codec import unstructure
        from ridgeline.parallel.plan import plan_data

        write_json({"job": unstructure(planned.job), "chosen": list(chosen.notes), **plan_data(planned)})
        return 0
    from ridgeline.apps.reports.plan import print_report

    print_report(planned, open_console(), chosen=chosen.notes)
    return 0
