"""The profile of a run: its steps told to the profiler, its files beside the job, its summary shown."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from ridgeline.apps.files import write_whole
from ridgeline.apps.profiles.folders import JOB_FILE, profile_folder, read_profiles
from ridgeline.apps.reports.profile import print_profiles
from ridgeline.core.codec import dumps
from ridgeline.core.errors import SpecError
from ridgeline.core.job import Job
from ridgeline.kernels.device import Device
from ridgeline.kernels.device.profiling import profiled
from ridgeline.models.runtime.build import Built


@contextmanager
def profiled_run(built: Built, device: Device, *, done: int) -> Iterator[Callable[[], object]]:
    """Profile the steps that the job asks for; gives what is to be called at the end of each step.

    Args:
        built: This rank.
        device: Whose profiler it is.
        done: Steps of the run that were made before.
    """
    job, rank = built.program.job, built.program.rank
    if job.profile is None:
        yield lambda: None
        return
    folder = profile_folder(job)
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        write_whole(folder / JOB_FILE, dumps(job), option="profile.output")
    with profiled(device.capabilities.name, job.profile, folder=folder, rank=rank, done=done) as end_step:
        yield end_step


def show_profile(job: Job, console: Console) -> None:
    """Print what was profiled; where that cannot be read, say so: the run itself is done."""
    if console.quiet:
        return
    folder = profile_folder(job)
    try:
        print_profiles(read_profiles(folder), console, top=10)
    except SpecError as error:
        console.print(f"profiled, but {error}", highlight=False, soft_wrap=True)
    else:
        console.print(f"profile: {folder}; again with ridgeline profile", highlight=False, soft_wrap=True)
