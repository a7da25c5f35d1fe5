"""``ridgeline launch``: the form in which a cluster's scheduler starts a job."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ridgeline.apps.launch_forms import FORMS, LaunchForm
from ridgeline.apps.options import Overrides
from ridgeline.apps.output import give
from ridgeline.apps.reading import read_job


def launch(
    job: str,
    /,
    *options: Overrides,
    format: Literal["torchrun", "slurm", "volcano"] = "torchrun",
    output: Annotated[Path | None, Parameter(name=("--file", "-o"))] = None,
    image: str = "ridgeline:latest",
    claim: str = "ridgeline",
) -> int:
    """Print, or write to a file, what starts a job on its nodes. It is planned first: a bad job starts nothing.

    Args:
        job: A job file, a preset or a model folder.
        options: Fields of the job, as --nodes 4.
        format: torchrun: the command for each node. slurm: a script for sbatch. volcano: a Kubernetes job.
        output: Where to write it; by default it is printed.
        image: The container image of a Kubernetes job.
        claim: The volume claim of a Kubernetes job, mounted at /workspace: its data and output belong there.
    """
    from ridgeline.apps.planning import plan_or_advise

    planned = plan_or_advise(read_job(job, options).job)
    form = LaunchForm(job=planned.job, command=("train", job, *options), image=image, claim=claim)
    give(FORMS[format](form), path=output, option="--file")
    return 0
