"""``ridgeline plan``: what every rank of a job will do, hold and send."""

import sys
from typing import Annotated

from cyclopts import Parameter

from ridgeline.apps.edges import edge
from ridgeline.apps.options import Overrides
from ridgeline.apps.reading import read_job


def plan(
    job: str,
    /,
    *options: Overrides,
    json: Annotated[bool, Parameter(negative="")] = False,
    verify_rank: int | None = None,
) -> int:
    """Plan a job and print the report: memory by stage, time by component, collectives, kernels, and every assumption.

    Args:
        job: A job file, a preset or a model folder.
        options: Fields of the job, as --layout.tp 8.
        json: Print the numbers as JSON instead, with the whole job.
        verify_rank: Instead, build this rank with Megatron-core and compare every parameter with the plan.
    """
    from ridgeline.parallel.plan import plan as plan_of

    chosen = read_job(job, options)
    planned = plan_of(chosen.job)
    if verify_rank is not None:
        return edge("ridgeline.apps.runtime.verify:verify_rank")(planned, verify_rank)
    if json:
        from msgspec.json import encode, format

        from ridgeline.core.codec import unstructure
        from ridgeline.parallel.plan import plan_data

        data = {"job": unstructure(planned.job), "chosen": list(chosen.notes), **plan_data(planned)}
        sys.stdout.write(format(encode(data), indent=2).decode() + "\n")
        return 0
    from rich.console import Console

    from ridgeline.apps.report import print_report

    terminal = Console()
    # A pipe has no width: wide enough there for every column.
    print_report(planned, terminal if terminal.is_terminal else Console(width=160), chosen=chosen.notes)
    return 0
