"""When a run saves: every so many steps, at its end, and when it is asked to stop; one save at a time."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ridgeline.apps.runtime.begin import checkpoints_of
from ridgeline.checkpoint.io.convert import export_hf
from ridgeline.checkpoint.io.dist import Saving, finish, save
from ridgeline.checkpoint.io.folders import remove_folder
from ridgeline.checkpoint.steps import step_name
from ridgeline.core.job import Job
from ridgeline.models.hf_config import hf_config_of
from ridgeline.models.runtime.build import Built


class Saver(Protocol):
    """Told of every step by every rank."""

    def __call__(self, step: int, consumed_samples: int, *, last: bool = False) -> None:
        """Save if it is time; on the ``last`` step always, and then wait until it is on the disk."""
        ...


@contextmanager
def open_saver(built: Built, *, saved_step: int) -> Iterator[Saver]:
    """A saver that follows the job's run.

    Args:
        built: This rank.
        saved_step: The step the run was resumed from, which is not saved again.

    Raises:
        SpecError: The run exports, and its model's family has no Hugging Face class.
    """
    run, folder = built.program.job.run, checkpoints_of(built.program.job)
    if run.export_hf_every is not None:
        hf_config_of(built.program.job.model)  # refuses a family without a Hugging Face class before the first step
    newest = saved_step
    under_way: Saving | None = None
    exporting: Future[None] | None = None

    def after_step(step: int, consumed_samples: int, *, last: bool = False) -> None:
        nonlocal newest, under_way, exporting
        if under_way is not None and finish(under_way, wait=last):
            under_way = None
        exports = run.export_hf_every is not None and step % run.export_hf_every == 0
        due = last or exports or (run.save_every is not None and step % run.save_every == 0)
        if not due or step == newest:
            return
        if exporting is not None:
            finish_export(exporting)  # it reads a checkpoint, which a save may remove
        under_way = save(
            folder,
            built,
            step=step,
            consumed_samples=consumed_samples,
            async_=run.async_save and not last and not exports,
            keep_last=run.keep_last,
            after=under_way,
        )
        newest = step
        if exports and built.program.rank == 0:
            exporting = start_export(folder / step_name(step), hf_folder(built.program.job, step))
        if last and exporting is not None:
            finish_export(exporting)

    yield after_step


def hf_folder(job: Job, step: int) -> Path:
    """Where a run's export of a step stands."""
    return Path(job.run.output) / "hf" / step_name(step)


def start_export(step: Path, out: Path) -> Future[None]:
    """Export a saved step beside training; one that stands already is of an earlier start of the run, and replaced."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="export")
    future = pool.submit(_export, step, out)
    pool.shutdown(wait=False)
    return future


def finish_export(exporting: Future[None]) -> None:
    """Wait for an export.

    Raises:
        CheckpointError: It failed.
    """
    exporting.result()


def _export(step: Path, out: Path) -> None:
    if out.exists():
        remove_folder(out)
    export_hf(step, out)
