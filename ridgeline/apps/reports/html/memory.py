"""Memory of each pipeline rank as bars against the device, and as a table."""

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from ridgeline.apps.reports.html.nodes import label, legend, line, node, number, picture, table
from ridgeline.apps.reports.html.over_time import over_time
from ridgeline.apps.reports.html.scale import ticks
from ridgeline.apps.reports.plan import GIB, MEMORY_COLUMNS, stages_text
from ridgeline.parallel.memory import RankMemory
from ridgeline.parallel.plan import Plan

WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 1000, 50, 80, 40, 24, 17
LIGHT = frozenset(("activations", "work", "grads", "optimizer"))
"""Components whose colour needs dark text."""


def memory_section(plan: Plan) -> Element:
    """Memory of each pipeline rank at its peak, by what it holds."""
    held = [name for name in MEMORY_COLUMNS if any(_bytes_of(rank, name) for rank in plan.memory)]
    return node(
        "section",
        node("h2", "Memory"),
        node("p", "A rank of each pipeline rank at its peak, in GiB, against what the device holds.", class_="soft"),
        legend((name, name) for name in held),
        _bars(plan, held),
        _table(plan),
        *over_time(plan),
    )


def _bars(plan: Plan, held: list[str]) -> Element:
    capacity = plan.memory[0].capacity_bytes
    most = max(capacity, plan.peak.total_bytes)
    per_byte = (WIDTH - LEFT - RIGHT) / most
    bottom = TOP + ROW * len(plan.memory)
    drawn = []
    for tick in ticks(most / GIB, about=8):
        x = LEFT + tick * GIB * per_byte
        drawn += [line(x, TOP, x, bottom, "grid"), label(f"{tick:,.10g}", x, TOP - 8, anchor="middle", kind="soft")]
    for row, rank in enumerate(plan.memory):
        drawn += _bar(rank, held, TOP + row * ROW + (ROW - BAR) / 2, per_byte)
    x = LEFT + capacity * per_byte
    full = f"{capacity / GIB:g} GiB"
    drawn += [line(x, TOP - 4, x, bottom + 4, "capacity"), label(full, x, TOP - 25, anchor="middle", kind="alarm")]
    title = "Memory of each pipeline rank by component; a dashed line where the device is full"
    return picture(title, *drawn, width=WIDTH, height=bottom + 8)


def _bar(rank: RankMemory, held: list[str], y: float, per_byte: float) -> Iterator[Element]:
    yield label(f"pp {rank.pp_rank}", LEFT - 8, y + 13, anchor="end")
    x = float(LEFT)
    for name in held:
        size = _bytes_of(rank, name)
        width = size * per_byte
        title = node("title", f"{name}: {size / GIB:.2f} GiB")
        yield node("rect", title, x=x, y=y, width=width, height=BAR, class_=f"fill-{name}")
        if width > 40:
            kind = "on-light" if name in LIGHT else "on-dark"
            yield label(f"{size / GIB:.1f}", x + width / 2, y + 13, anchor="middle", kind=kind)
        x += width
    yield label(f"{rank.total_bytes / GIB:.1f}", x + 6, y + 13, kind="bold" if rank.fits else "alarm")


def _table(plan: Plan) -> Element:
    columns = ("pp", "layers", *MEMORY_COLUMNS, "total", "of", "peak at")
    rows = []
    for rank in plan.memory:
        sizes = [_gib(_bytes_of(rank, name)) for name in (*MEMORY_COLUMNS, "total", "capacity")]
        peak = f"{rank.peak_at}, {rank.in_flight} in flight"
        layers = stages_text(plan, rank.pp_rank).replace("layers ", "").replace("layer ", "")
        rows.append((str(rank.pp_rank), layers, *sizes, peak))
    return table("memory", "GiB at the peak", columns, rows)


def _gib(size: int) -> Element:
    return number(size, f"{size / GIB:.2f}")


def _bytes_of(rank: RankMemory, name: str) -> int:
    return getattr(rank, f"{name}_bytes")
