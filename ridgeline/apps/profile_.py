"""``ridgeline profile``: what the profile of a run tells."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ridgeline.apps.output import open_console, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from ridgeline.apps.profiles.summary import RankProfile


def profile_(folder: Path, /, *, top: int = 15, json: Annotated[bool, Parameter(negative="")] = False) -> int:
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
        show_profiles(profiles, console=open_console(), top=top)
    return 0


def show_profiles(profiles: "Sequence[RankProfile]", *, console: "Console", top: int) -> None:
    """Print a table of the mean step of every rank, and one of the operations of the slowest."""
    from rich.table import Table

    from ridgeline.apps.profiles.summary import mean_step

    steps = Table(title="A step in the mean, ms", title_justify="left")
    for name in ("rank", "steps", "total", "compute", "communication", "exposed", "idle"):
        steps.add_column(name, justify="right")
    for profile in profiles:
        mean = mean_step(profile)
        parts = (mean.total_us, mean.compute_us, mean.communication_us, mean.exposed_us, mean.idle_us)
        steps.add_row(str(profile.rank), str(len(profile.steps)), *(f"{part / 1e3:,.2f}" for part in parts))
    slowest = max(profiles, key=lambda profile: mean_step(profile).total_us)
    ops = Table(title=f"Operations of rank {slowest.rank}, per step", title_justify="left")
    for name in ("operation", "calls", "ms", "share"):
        ops.add_column(name, justify="left" if name == "operation" else "right")
    count, total = len(slowest.steps), sum(op.total_us for op in slowest.ops)
    for op in slowest.ops[:top]:
        per_step = op.total_us / count
        ops.add_row(op.name, f"{op.calls / count:g}", f"{per_step / 1e3:,.3f}", f"{op.total_us / total:.1%}")
    console.print(steps)
    console.print(ops)
