"""Memory of the fullest rank along a step, drawn."""

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from ridgeline.apps.reports.html.nodes import label, legend, line, node, picture
from ridgeline.apps.reports.html.scale import ticks
from ridgeline.parallel.over_time import memory_over_time
from ridgeline.parallel.plan import Plan

GIB = 2**30
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 1000, 50, 975, 12, 160


def over_time(plan: Plan) -> Iterator[Element]:
    """Tensors at the worst of each action and between two; what is there all the while under what comes and goes."""
    rank, step_us = plan.peak.pp_rank, plan.time.step_us
    points = memory_over_time(plan, rank)
    always = points[0].total_bytes - points[0].activations - points[0].work
    per_us = (RIGHT - LEFT) / step_us
    per_byte = (BOTTOM - TOP) / max(point.total_bytes for point in points)
    starts = (*plan.timeline.start_us[rank], step_us - dict(plan.time.parts).get("update", 0.0))
    ends = (*plan.timeline.end_us[rank], step_us)
    path = [f"M{LEFT} {BOTTOM}V{BOTTOM - always * per_byte:.1f}"]
    for point, start, end in zip(points, starts, ends, strict=True):
        path.append(f"H{LEFT + start * per_us:.1f}V{BOTTOM - point.total_bytes * per_byte:.1f}")
        path.append(f"H{LEFT + end * per_us:.1f}V{BOTTOM - point.after_bytes * per_byte:.1f}")
    drawn = [*_axes(step_us, per_us, per_byte), node("path", d=f"{''.join(path)}V{BOTTOM}z", class_="fill-activations")]
    size = {"width": step_us * per_us, "height": always * per_byte}
    drawn.append(node("rect", x=LEFT, y=BOTTOM - size["height"], **size, class_="fill-always"))
    title = f"Tensors of pp rank {rank} along a step: GiB over ms"
    yield node("p", f"{title}.", class_="soft")
    yield legend((("always", "weights, gradients, optimizer, buffers"), ("activations", "activations and work")))
    yield picture(title, *drawn, width=WIDTH, height=BOTTOM + 24)


def _axes(step_us: float, per_us: float, per_byte: float) -> Iterator[Element]:
    for tick in ticks((BOTTOM - TOP) / per_byte / GIB, about=4):
        y = BOTTOM - tick * GIB * per_byte
        yield line(LEFT, y, RIGHT, y, "grid")
        yield label(f"{tick:,.10g}", LEFT - 8, y + 4, anchor="end", kind="soft")
    for tick in ticks(step_us / 1e3, about=9):
        yield label(f"{tick:,.10g}", LEFT + tick * 1e3 * per_us, BOTTOM + 18, anchor="middle", kind="soft")
