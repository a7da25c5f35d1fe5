"""Each operation of the model under the chip's roof, drawn and as a table."""

from collections.abc import Iterator, Sequence
from math import log10
from typing import NamedTuple
from xml.etree.ElementTree import Element

from ridgeline.apps.reports.html.nodes import label, legend, line, node, number, picture, table
from ridgeline.apps.reports.html.scale import log_ticks
from ridgeline.core.cluster import Chip
from ridgeline.parallel.plan import Plan
from ridgeline.parallel.roofline import OpPoint, op_points, roof_flops
from ridgeline.parallel.work import stage_work

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 1000, 60, 720, 26, 400
LINE = 17  # between two names


class _Frame(NamedTuple):
    """Where numbers lie in the drawing, both axes logarithmic."""

    intensities: Sequence[float]
    teraflops: Sequence[float]

    def x(self, intensity: float) -> float:
        return LEFT + _place(intensity, self.intensities) * (RIGHT - LEFT)

    def y(self, flops_per_s: float) -> float:
        return BOTTOM - _place(flops_per_s / 1e12, self.teraflops) * (BOTTOM - TOP)


def _place(value: float, ticks: Sequence[float]) -> float:
    """Where a value lies between the first and the last tick, 0 .. 1."""
    return log10(value / ticks[0]) / log10(ticks[-1] / ticks[0])


def roofline_section(plan: Plan) -> Element:
    """Arithmetic intensity against attained FLOP/s, and what each operation takes."""
    points = op_points(plan.job, mesh=plan.mesh, work=stage_work(plan.job, plan.stages))
    chip = plan.job.cluster.chip
    text = (
        f"The forward of each operation on one rank, as the plan counts on it, under {chip.name}'s roof: "
        f"{chip.cube_flops / 1e12:.1f} TFLOP/s, {chip.hbm_bandwidth / 1e12:.2f} TB/s. Operations that memory traffic "
        "alone bounds have no FLOPs to count and stand in the table only."
    )
    kinds = (("gemm", "matrix products"), ("attention", "attention"))
    drawn = _drawing([point for point in points if point.flops], chip)
    return node(
        "section", node("h2", "Roofline"), node("p", text, class_="soft"), legend(kinds), drawn, _table(points, chip)
    )


def _drawing(points: Sequence[OpPoint], chip: Chip) -> Element:
    ridge = chip.cube_flops / chip.hbm_bandwidth
    intensities = [point.intensity for point in points] + [ridge / 8, 2 * ridge]
    rates = [point.flops_per_s / 1e12 for point in points] + [chip.cube_flops / 8e12, chip.cube_flops / 1e12]
    frame = _Frame(log_ticks(min(intensities), max(intensities)), log_ticks(min(rates), max(rates)))
    drawn = [*_axes(frame), *_roof(frame, chip), *_points(frame, points)]
    title = "Attained TFLOP/s of each operation over its arithmetic intensity, under the roof of the chip"
    return picture(title, *drawn, width=WIDTH, height=BOTTOM + 44)


def _axes(frame: _Frame) -> Iterator[Element]:
    for tick in frame.intensities:
        x = frame.x(tick)
        yield line(x, TOP, x, BOTTOM, "grid")
        yield label(f"{tick:,g}", x, BOTTOM + 18, anchor="middle", kind="soft")
    for tick in frame.teraflops:
        y = frame.y(tick * 1e12)
        yield line(LEFT, y, RIGHT, y, "grid")
        yield label(f"{tick:,g}", LEFT - 8, y + 4, anchor="end", kind="soft")
    yield label("arithmetic intensity, FLOPs a byte", (LEFT + RIGHT) / 2, BOTTOM + 38, anchor="middle", kind="soft")
    yield label("TFLOP/s", 4, TOP - 14, kind="soft")


def _roof(frame: _Frame, chip: Chip) -> Iterator[Element]:
    low = max(frame.intensities[0], frame.teraflops[0] * 1e12 / chip.hbm_bandwidth)
    ridge, high = chip.cube_flops / chip.hbm_bandwidth, frame.intensities[-1]
    corners = [(frame.x(at), frame.y(roof_flops(at, chip))) for at in (low, ridge, high)]
    yield node("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in corners), class_="roof")


def _points(frame: _Frame, points: Sequence[OpPoint]) -> Iterator[Element]:
    """A dot each, its name to the right of the frame, names from top to bottom as the dots."""
    order = sorted(points, key=lambda point: (-point.flops_per_s, point.intensity))
    y_name = float(TOP)
    for index, point in enumerate(order):
        x, y = frame.x(point.intensity), frame.y(point.flops_per_s)
        y_name = max(y_name + LINE, min(y, BOTTOM - LINE * (len(order) - index)))
        kind = "attention" if "attention" in point.name else "gemm"
        text = f"{point.name}: {point.flops_per_s / 1e12:,.3g} TFLOP/s at {point.intensity:,.0f}"
        yield line(x, y, RIGHT + 14, y_name - 4, "leader")
        yield node("circle", node("title", text), cx=x, cy=y, r=5, class_=f"fill-{kind}")
        yield label(text, RIGHT + 18, y_name)


def _table(points: Sequence[OpPoint], chip: Chip) -> Element:
    rows = []
    for point in points:
        roof = point.flops_per_s / roof_flops(point.intensity, chip) if point.flops else None
        rows.append(
            (
                point.name,
                number(point.times, f"{point.times}"),
                number(point.us, f"{point.us:,.1f}"),
                number(point.flops, f"{point.flops / 1e9:,.1f}") if point.flops else "",
                number(point.moved_bytes, f"{point.moved_bytes / 1e6:,.1f}"),
                number(point.intensity, f"{point.intensity:,.1f}") if point.flops else "",
                number(point.flops_per_s, f"{point.flops_per_s / 1e12:,.1f}") if point.flops else "",
                number(roof, f"{roof:.0%}") if roof is not None else "",
                number(point.bytes_per_s, f"{point.bytes_per_s / 1e9:,.0f}"),
            )
        )
    columns = ("operation", "times", "us", "GFLOP", "MB", "FLOPs a byte", "TFLOP/s", "of the roof", "GB/s")
    caption = "One forward of each operation; times: by how many layers of all stages it runs for one microbatch"
    return table("roofline", caption, columns, rows)
