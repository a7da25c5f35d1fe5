"""``ridgeline train``: train a job on this process, on those torchrun started, or on some of this machine."""

import os
import sys

from ridgeline.apps.edges import edge
from ridgeline.apps.options import Overrides
from ridgeline.apps.reading import read_job


def train(
    job: str,
    /,
    *options: Overrides,
    until: int | None = None,
    local: int | None = None,
) -> int:
    """Train a job to its last step, or until SIGTERM or SIGINT; then save. A run with a checkpoint goes on from it.

    Exit code 0: the last step was made, or a signal came and everything was saved. 1: a failure underway; the last
    checkpoint is whole. 2: bad input, before the first step.

    Args:
        job: A job file, a preset or a model folder.
        options: Fields of the job, as --run.steps 100.
        until: Stop after this step of the run and save.
        local: Start this many processes on this machine, which then is the job's cluster.
    """
    if local is not None:
        options = (*options, "--cluster.nodes", "1", "--cluster.devices-per-node", str(local))
    chosen = read_job(job, options)
    if local is not None and "RANK" not in os.environ:
        again = ["train", job, *options, *(["--until", str(until)] if until is not None else [])]
        return edge("ridgeline.apps.runtime.local:run_local")(again, processes=local)
    for note in chosen.notes if os.environ.get("RANK", "0") == "0" else ():
        sys.stdout.write(f"chosen: {note}\n")
    edge("ridgeline.apps.runtime.rank:run_rank")(chosen.job, until=until)
    return 0
