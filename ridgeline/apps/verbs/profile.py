"""``ridgeline profile``: what the profile of a run tells."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ridgeline.apps.output import open_console, write_json


def profile(folder: Path, /, *, top: int = 15, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Tell where the time of a profiled run's steps went, and which operations took most of it.

    Profile a run with ``ridgeline train JOB --profile.start 10 --profile.end 12``. The files themselves open in
    TensorBoard, Perfetto (ui.perfetto.dev) and, those of an npu, in MindStudio Insight.

    Args:
        folder: Where the profile was written: profile.output, or "profile" in the run's output.
        top: How many operations to list.
        json: Print everything as JSON instead.
    """
    from ridgeline.apps.profiles.folders import read_profiles

    profiles = read_profiles(folder)
    if json:
        from ridgeline.core.codec import unstructure

        write_json([unstructure(profile) for profile in profiles])
    else:
        from ridgeline.apps.reports.profile import print_profiles

        print_profiles(profiles, open_console(), top=top)
    return 0
