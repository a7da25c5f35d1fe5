"""Where a run begins: at its last checkpoint if there is one, else with the weights its job names."""

from collections.abc import Iterator
from pathlib import Path

import attrs

from ridgeline.checkpoint.io.dist import load
from ridgeline.checkpoint.io.folders import latest
from ridgeline.checkpoint.io.initial import load_initial
from ridgeline.checkpoint.io.recorded import CHECKPOINTS
from ridgeline.core.diff import diff
from ridgeline.core.job import Job
from ridgeline.models.runtime.build import Built


@attrs.frozen(kw_only=True)
class Start:
    """The state a run goes on from, and what to tell about it."""

    step: int = 0
    consumed_samples: int = 0
    notes: tuple[str, ...] = ()


def checkpoints_of(job: Job) -> Path:
    """The folder of a run's checkpoints."""
    return Path(job.run.output) / CHECKPOINTS


def begin(built: Built) -> Start:
    """Bring a built rank to where its run begins; every rank calls it.

    Raises:
        CheckpointError: The checkpoint is of another model, damaged or cut short.
    """
    job = built.program.job
    found = latest(checkpoints_of(job))
    if found is None:
        load_initial(built)
        return Start(notes=(f"a new run, with {job.init.hf or job.init.checkpoint or 'random'} weights",))
    record = load(found, built)
    changes = _changes(record.job, job) if record.job else ("converted from another trainer's checkpoint",)
    notes = (f"resumed from {found} at step {record.step} of {job.run.steps}", *changes)
    return Start(step=record.step, consumed_samples=record.consumed_samples, notes=notes)


def _changes(saved: Job, wanted: Job) -> Iterator[str]:
    """What is not as it was, since it may change the rest of the curve."""
    for change in diff(saved, wanted):
        yield f"changed since it was saved: {change}"
