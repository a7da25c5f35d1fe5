"""The pipeline of one step, drawn to scale: the whole step, and its ends where the whole shows no single action."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from xml.etree.ElementTree import Element

from ridgeline.apps.reports.html.nodes import label, legend, line, node, picture
from ridgeline.apps.reports.html.scale import ticks
from ridgeline.apps.reports.plan import PART_NAMES
from ridgeline.parallel.actions import KINDS, Action
from ridgeline.parallel.plan import Plan

WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 1000, 50, 975, 40, 22, 18
NAMED = 26  # width from which an action shows its name
SEEN = 3  # below it, actions that touch are drawn as one
LIGHT = frozenset("BIR")
"""Kinds whose colour needs dark text."""


def pipeline_section(plan: Plan) -> Element:
    """Each pipeline rank's actions over time, in ms."""
    timeline = plan.timeline
    kinds = [kind for kind in KINDS if any(kind == action[1] for row in plan.schedule.ranks for action in row)]
    words = [(kind, KINDS[kind]) for kind in kinds]
    words += [(name, PART_NAMES[name]) for name, us in plan.time.parts if name in ("dp", "update") and us > 0]
    first = min(end - start for start, end in zip(timeline.start_us[0], timeline.end_us[0], strict=True))
    span = (RIGHT - LEFT) * first / (1.4 * NAMED)
    panels = [_panel(plan, 0.0, plan.time.step_us, f"One step, {plan.time.step_us / 1e3:,.1f} ms")]
    if plan.time.step_us > 1.5 * span:
        panels.append(_panel(plan, 0.0, span, "Its beginning"))
        end = min(plan.time.step_us, timeline.makespan_us + span / 5)
        panels.append(_panel(plan, end - span, end, "The pipeline's end"))
    shown = "A row for each pp rank; time in ms. A name is stage, kind, microbatch"
    chunks = "; later chunks are paler" if plan.schedule.vpp > 1 else ""
    text = f"{plan.schedule.name}: {shown}{chunks}. Bubble {plan.time.bubble:.1%}."
    return node("section", node("h2", "Pipeline"), node("p", text, class_="soft"), legend(words), *panels)


def _panel(plan: Plan, begin: float, end: float, title: str) -> Element:
    per_us = (RIGHT - LEFT) / (end - begin)
    bottom = TOP + ROW * plan.mesh.pp
    drawn = [label(title, 0, 12, kind="bold")]
    for tick in ticks(end / 1e3, about=max(2, round(9 * end / (end - begin)))):
        x = LEFT + (tick * 1e3 - begin) * per_us
        if x >= LEFT:
            drawn += [
                line(x, TOP - 4, x, bottom, "grid"),
                label(f"{tick:,.10g}", x, TOP - 8, anchor="middle", kind="soft"),
            ]
    for pp_rank in range(plan.mesh.pp):
        y = TOP + ROW * pp_rank
        drawn += [
            label(f"pp {pp_rank}", LEFT - 8, y + 15, anchor="end"),
            node("rect", x=LEFT, y=y + 2, width=RIGHT - LEFT, height=BAR, class_="ground"),
        ]
        drawn += chain(_actions(plan, pp_rank, begin, end, y + 2), _step_end(plan, begin, end, y + 2))
    return picture(title, *drawn, width=WIDTH, height=bottom + 4)


def _actions(plan: Plan, pp_rank: int, begin: float, end: float, y: float) -> Iterator[Element]:
    """Actions within a window; narrow ones that touch, of one kind and chunk, are one shape."""
    per_us = (RIGHT - LEFT) / (end - begin)
    chunk_of = {stage: chunk for chunk, stage in enumerate(plan.stages.owned_by(pp_rank))}
    narrow: defaultdict[str, list[str]] = defaultdict(list)
    row = zip(plan.schedule.ranks[pp_rank], plan.timeline.start_us[pp_rank], plan.timeline.end_us[pp_rank], strict=True)
    for (stage, kind, microbatch), start, stop in row:
        left, right = max(start, begin), min(stop, end)
        if left >= right:
            continue
        x, width = LEFT + (left - begin) * per_us, (right - left) * per_us
        style = f"fill-{kind}" + (" later" if chunk_of[stage] else "")
        name = str(Action(stage, kind, microbatch))
        if width < SEEN:
            narrow[style].append(f"M{x:.1f} {y:.1f}h{width:.2f}v{BAR}h-{width:.2f}z")
            continue
        title = node("title", f"{name}: {start / 1e3:,.2f} to {stop / 1e3:,.2f} ms")
        yield node("rect", title, x=x, y=y, width=width, height=BAR, class_=style)
        if width >= NAMED:
            text = name if plan.schedule.vpp > 1 else f"{kind}{microbatch}"
            ink = "on-light" if kind in LIGHT or chunk_of[stage] else "on-dark"
            yield label(text, x + width / 2, y + 13, anchor="middle", kind=ink)
    for style, shapes in narrow.items():
        yield node("path", d="".join(shapes), class_=style)


def _step_end(plan: Plan, begin: float, end: float, y: float) -> Iterator[Element]:
    """What follows the last action: collectives that nothing hides, and the update."""
    per_us, parts, start = (RIGHT - LEFT) / (end - begin), dict(plan.time.parts), plan.timeline.makespan_us
    for name in ("dp", "update"):
        stop = start + parts.get(name, 0.0)
        left, right = max(start, begin), min(stop, end)
        if left < right:
            title = node("title", f"{PART_NAMES[name]}: {start / 1e3:,.2f} to {stop / 1e3:,.2f} ms")
            x, width = LEFT + (left - begin) * per_us, (right - left) * per_us
            yield node("rect", title, x=x, y=y, width=width, height=BAR, class_=f"fill-{name}")
        start = stop
