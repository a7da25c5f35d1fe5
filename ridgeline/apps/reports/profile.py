"""The profile of a run as tables."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ridgeline.apps.profiles.summary import RankProfile, mean_step


def print_profiles(profiles: Sequence[RankProfile], console: Console, *, top: int) -> None:
    """Print a table of the mean step of every rank, and one of the operations of the slowest."""
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
