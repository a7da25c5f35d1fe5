"""One rank of a run as a process: when it fails it says so once, and is gone within seconds."""

import os
import sys

from ridgeline.apps.failures import report
from ridgeline.apps.runtime.train import train
from ridgeline.apps.runtime.world import RankFailedError
from ridgeline.core.job import Job


def run_rank(job: Job, *, until: int | None) -> None:
    """Train as this process's rank.

    Where there are several ranks a failure ends the process here and now, since leaving in the usual way would wait for
    collectives that never end; the others lose their connection and follow. The first to fail tells why. Before they
    are connected, the first of each node does.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    try:
        train(job, until=until)
    except BaseException as error:
        if alone:
            raise
        cause = error.__cause__ if isinstance(error, RankFailedError) else error
        assert cause is not None
        tells = error.first if isinstance(error, RankFailedError) else os.environ.get("LOCAL_RANK", "0") == "0"
        code = report(cause, source=f"rank {os.environ['RANK']}: ", silent=not tells)
        sys.stdout.flush()
        os._exit(code)
