"""``ridgeline schedules``: the pipeline schedules by name, compared or drawn."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ridgeline.apps.output import open_console, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from ridgeline.parallel.schedules.survey import Figures
    from ridgeline.parallel.simulate import Timeline


def schedules(
    name: str | None = None,
    /,
    *,
    pp: int = 4,
    microbatches: int = 8,
    vpp: int = 2,
    slices: int = 4,
    forward: float = 1.0,
    input_grad: float = 1.0,
    weight_grad: float = 1.0,
    p2p: float = 0.0,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Compare every schedule on a pipeline of equal ranks, or print and draw one.

    Args:
        name: Of one schedule.
        pp: Pipeline ranks.
        microbatches: Of one step.
        vpp: Chunks per rank of schedules that interleave.
        slices: Slices of a sequence of those that cut it.
        forward: Time of one microbatch's forward on one rank, in any unit.
        input_grad: Time of the input gradients of its backward.
        weight_grad: Time of the weight gradients of its backward.
        p2p: Time of a transfer between ranks.
        json: Print JSON instead: the figures, or the actions of each rank.
    """
    from ridgeline.parallel.schedules.survey import Even, even_timeline, survey

    even = Even(
        pp=pp,
        num_microbatches=microbatches,
        vpp=vpp,
        slices=slices,
        forward_us=forward,
        input_us=input_grad,
        weight_us=weight_grad,
        p2p_us=p2p,
    )
    if name is not None:
        _show(even_timeline(name, even), json=json)
        return
    figures, missing = survey(even)
    if json:
        import attrs

        rows, faults = [attrs.asdict(row) for row in figures], {name: str(error) for name, error in missing}
        write_json({"pipeline": attrs.asdict(even), "schedules": rows, "missing": faults})
        return
    open_console().print(_table(figures))
    sys.stdout.writelines(f"no {name}: {error}\n" for name, error in missing)


def _show(timeline: "Timeline", *, json: bool) -> None:
    """One schedule: what each rank does in order, and when."""
    schedule, console = timeline.schedule, open_console()
    if json:
        actions = [[str(action) for action in row] for row in schedule.ranks]
        pairs = [sorted(schedule.pairs_of(pp_rank)) for pp_rank in range(schedule.pp)]
        times = {"start_us": timeline.start_us, "end_us": timeline.end_us}
        write_json({"name": schedule.name, "slices": schedule.slices, "actions": actions, "pairs": pairs, **times})
        return
    from ridgeline.parallel.draw import draw

    sys.stdout.write(f"{schedule}\n\n{draw(timeline, width=console.width)}\n")


def _table(figures: "Sequence[Figures]") -> "Table":
    from rich.table import Table

    table = Table()
    for column in ("schedule", "chunks", "makespan", "bubble", "of a rank's span", "held at most", "at least"):
        table.add_column(column, justify="left" if column == "schedule" else "right")
    for row in figures:
        shares = f"{row.bubble:.4f}", f"{row.span_bubble:.4f}"
        table.add_row(row.name, str(row.chunks), f"{row.makespan_us:g}", *shares, f"{row.most:g}", f"{row.fewest:g}")
    return table
