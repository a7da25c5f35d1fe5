"""When a run saves: every so many steps, at its end, and when it is asked to stop; one save at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ridgeline.apps.runtime.begin import checkpoints_of
from ridgeline.checkpoint.io.dist import Saving, finish, save
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
    """
    run, folder = built.program.job.run, checkpoints_of(built.program.job)
    newest = saved_step
    under_way: Saving | None = None

    def after_step(step: int, consumed_samples: int, *, last: bool = False) -> None:
        nonlocal newest, under_way
        if under_way is not None and finish(under_way, wait=last):
            under_way = None
        due = last or (run.save_every is not None and step % run.save_every == 0)
        if not due or step == newest:
            return
        under_way = save(
            folder,
            built,
            step=step,
            consumed_samples=consumed_samples,
            async_=run.async_save and not last,
            keep_last=run.keep_last,
            after=under_way,
        )
        newest = step

    yield after_step
