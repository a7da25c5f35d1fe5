"""A search as tables: the best layouts, the front, the neighbours of the best, and what was covered."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ridgeline.core.codec import unstructure
from ridgeline.core.job import FullRecompute, SelectiveRecompute
from ridgeline.parallel.search.grid import PATHS, Grid, Point
from ridgeline.parallel.search.result import Found, Neighbour, SearchResult

GIB = 2**30
NEUTRAL = {
    **dict.fromkeys(("cp", "ep", "etp", "vpp"), 1),
    **dict.fromkeys(("sp", "swap_attention", "swap_optimizer"), False),
    **dict.fromkeys(("recompute", "stages")),
    "masters": "fp32",
    "moe_dispatcher": "alltoall",
    "moe_overlap": (),
}
"""Values that go without saying."""


def print_search(result: SearchResult, console: Console) -> None:
    """Print what a search found."""
    for part in _parts(result):
        console.print(part)


def _parts(result: SearchResult) -> Iterator[RenderableType]:
    best, shortage = result.best, result.shortage
    if best is not None:
        yield Text(f"{best.job.name} on {best.job.cluster.world_size} devices: {layout_text(best.point)}", style="bold")
        yield _layouts("Best layout of each of the fastest meshes", result.ranked)
        yield _layouts(f"Less memory for more time, up to {result.front_within:g} times the best step", result.front)
        yield _neighbours(result.neighbours)
    elif shortage is not None:
        yield Text("No layout fits.", style="bold red")
        yield Text(shortage_text(result))
    else:
        yield Text("No layout of this grid has a plan.", style="bold red")
    yield _grid(result.grid)
    yield Text("\n".join(_covered(result)))


def layout_text(point: Point) -> str:
    """A layout in a line, what goes without saying left out."""
    values = axis_values(point)
    if values["cp"] == 1:
        del values["cp_algorithm"]
    if values["ulysses"] == 1:
        del values["ulysses"]
    return " ".join(f"{axis}={value_text(value)}" for axis, value in values.items() if NEUTRAL.get(axis, ...) != value)


def axis_values(point: Point) -> dict[str, Any]:
    """The value of each axis, in the order of the axes."""
    return {axis: getattr(part, axis) for axis in PATHS for part in point if axis in part._fields}


def value_text(value: Any) -> str:
    """A value of an axis as a reader takes it.

    Example:
        >>> value_text(FullRecompute(method="block", num_layers=2)), value_text((3, 4, 4, 4, 3)), value_text(None)
        ('full, block of 2', '3,4*3,3', 'none')
    """
    match value:
        case SelectiveRecompute(modules=modules):
            return "+".join(modules)
        case FullRecompute(method="uniform"):
            return "full"
        case FullRecompute(num_layers=layers):
            return f"full, block of {layers}"
        case bool():
            return "yes" if value else "no"
        case ():
            return "none"
        case (str(), *_):
            return "+".join(value)
        case tuple():
            runs = [(count, len(tuple(run))) for count, run in groupby(value)]
            return ",".join(
                f"{count}*{times}" if times > 2 else ",".join([str(count)] * times) for count, times in runs
            )
        case None:
            return "none"
    return str(value)


def shortage_text(result: SearchResult) -> str:
    """What lacks, in sentences."""
    shortage = result.shortage
    assert shortage is not None
    least = shortage.least
    text = (
        f"The one that needs the least: {layout_text(least.point)}\n"
        f"needs {least.total_bytes / GIB:.1f} GiB of {least.capacity_bytes / GIB:.1f} GiB a device, "
        f"{shortage.over_bytes / GIB:.1f} GiB too much."
    )
    if shortage.nodes is None:
        return f"{text}\nMore nodes alone do not help; shorten batch.seq_len, or search more layouts (--all)."
    return (
        f"{text}\n{shortage.nodes} nodes would do, where there are {least.job.cluster.nodes}: --nodes {shortage.nodes}."
    )


def _layouts(title: str, found: tuple[Found, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("layout", "dp", "GiB", "of", "step ms", "slower", "MFU", "runs"):
        table.add_column(name, justify="left" if name in ("layout", "runs") else "right")
    for one in found:
        table.add_row(
            layout_text(one.point),
            str(one.job.dp),
            f"{one.total_bytes / GIB:.1f}",
            f"{one.capacity_bytes / GIB:.0f}",
            f"{one.step_us / 1e3:,.1f}",
            f"{one.step_us / found[0].step_us - 1:.1%}",
            f"{one.mfu_full:.1%}",
            "planned only" if one.lowering_faults else "yes",
        )
    return table


def _neighbours(neighbours: tuple[Neighbour, ...]) -> Table:
    table = Table(title="Neighbours of the best, one axis changed", title_justify="left", title_style="bold")
    for name in ("axis", "value", "why it loses"):
        table.add_column(name)
    for one in neighbours:
        table.add_row(one.axis, value_text(one.value), why_text(one))
    return table


def why_text(one: Neighbour) -> str:
    """Why a neighbour is not the best."""
    if one.found is None:
        return one.refused
    time = f"slower by {one.slower:.2%}" if one.slower > 0 else f"faster by {-one.slower:.2%}"
    if one.over_bytes > 0:
        return f"does not fit, by {one.over_bytes / GIB:.2f} GiB ({time})"
    size = f"{-one.over_bytes / GIB:.1f} GiB free"
    return f"as fast ({size})" if one.slower == 0 else f"{time} ({size})"


def _grid(grid: Grid) -> Table:
    table = Table(title="The grid", title_justify="left", title_style="bold")
    for name in ("axis", "values", "left out"):
        table.add_column(name)
    for axis in PATHS:
        values = getattr(grid, axis)
        shown = "by rule: see docs/search.md" if values is None else " | ".join(map(value_text, values))
        out = "; ".join(
            f"{' | '.join(map(value_text, one.values))}: {one.why}" for one in grid.left_out if one.axis == axis
        )
        table.add_row(axis, shown, out)
    return table


def _covered(result: SearchResult) -> Iterator[str]:
    counts = result.counts
    yield (
        f"{counts.points:,} layouts: {counts.planned:,} planned, {counts.slower:,} ruled out by a bound of their time, "
        f"{counts.larger:,} by one of their memory, {counts.refused:,} refused; {counts.branches:,} branches looked at"
    )
    if result.best is not None:
        yield f"none of the others takes less than {counts.bound_us / 1e3:,.1f} ms and fits"


def search_data(result: SearchResult) -> dict[str, Any]:
    """All of a result as plain data."""
    return {
        "best": found_data(result.best) | {"job": unstructure(result.best.job)} if result.best else None,
        "ranked": list(map(found_data, result.ranked)),
        "front": list(map(found_data, result.front)),
        "front_within": result.front_within,
        "neighbours": [
            {
                "axis": one.axis,
                "value": _plain(one.value),
                "found": found_data(one.found) if one.found else None,
                "slower": one.slower,
                "over_bytes": one.over_bytes,
                "refused": one.refused,
            }
            for one in result.neighbours
        ],
        "counts": unstructure(result.counts),
        "grid": {axis: _plain(getattr(result.grid, axis)) for axis in PATHS},
        "left_out": [{"axis": one.axis, "values": _plain(one.values), "why": one.why} for one in result.grid.left_out],
        "shortage": {
            "least": found_data(result.shortage.least),
            "over_bytes": result.shortage.over_bytes,
            "nodes": result.shortage.nodes,
        }
        if result.shortage
        else None,
    }


def found_data(found: Found) -> dict[str, Any]:
    """A layout and its numbers."""
    return {
        "layout": {axis: _plain(value) for axis, value in axis_values(found.point).items()},
        "dp": found.job.dp,
        "total_bytes": found.total_bytes,
        "capacity_bytes": found.capacity_bytes,
        "fits": found.fits,
        "step_us": found.step_us,
        "tokens_per_s": found.tokens_per_s,
        "mfu_full": found.mfu_full,
        "mfu_causal": found.mfu_causal,
        "lowering_faults": list(found.lowering_faults),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(map(_plain, value))
    return unstructure(value) if isinstance(value, (SelectiveRecompute, FullRecompute)) else value
