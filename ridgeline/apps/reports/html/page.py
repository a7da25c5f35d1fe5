"""The page: what the job is, what it takes, and every number with its picture."""

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from ridgeline.apps.reports.html.links import links_section
from ridgeline.apps.reports.html.memory import memory_section
from ridgeline.apps.reports.html.nodes import bar, markup, node, number, table
from ridgeline.apps.reports.html.pipeline import pipeline_section
from ridgeline.apps.reports.html.roofline import roofline_section
from ridgeline.apps.reports.html.style import STYLE
from ridgeline.apps.reports.plan import GIB, PART_NAMES, head
from ridgeline.core.codec import dumps
from ridgeline.parallel.plan import Plan

NOTHING_LOADED = "default-src 'none'; style-src 'unsafe-inline'"


def plan_page(plan: Plan, *, chosen: Sequence[str] = ()) -> str:
    """A plan as the text of an HTML file that needs no other.

    Args:
        plan: What to show.
        chosen: A sentence for each field that a preset's rule chose.
    """
    title = f"{plan.job.name}: plan"
    return page(title, *_body(plan, chosen))


def page(title: str, *sections: Element) -> str:
    """An HTML file of some sections."""
    head_nodes = (
        node("meta", charset="utf-8"),
        node("meta", http_equiv="Content-Security-Policy", content=NOTHING_LOADED),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("title", title),
        node("style", STYLE),
    )
    footer = node("footer", "Written by Ridgeline. A plan is a forecast: see what it assumes.")
    root = node("html", node("head", *head_nodes), node("body", node("main", *sections), footer), lang="en")
    return f"<!DOCTYPE html>\n{markup(root)}\n"


def _body(plan: Plan, chosen: Sequence[str]) -> Iterator[Element]:
    yield _summary(plan)
    if plan.warnings:
        yield _sentences("Warnings", plan.warnings)
    yield memory_section(plan)
    yield _time(plan)
    yield pipeline_section(plan)
    yield roofline_section(plan)
    yield links_section(plan)
    yield _kernels(plan)
    if chosen:
        yield _sentences("Chosen for this preset", chosen)
    yield _sentences("Assumptions", plan.assumptions)
    job = node("details", node("summary", "The job, as it is planned"), node("pre", dumps(plan.job, format="toml")))
    yield node("section", node("h2", "Job"), job)


def _summary(plan: Plan) -> Element:
    time, peak = plan.time, plan.peak
    _, machine, layout, *_ = head(plan)
    fits = node("span", "fits" if peak.fits else "does not fit", class_="good" if peak.fits else "alarm")
    cards = (
        (number(time.step_us, f"{time.step_us / 1e6:,.2f} s"), "a step"),
        (number(time.tokens_per_s, f"{time.tokens_per_s:,.0f}"), "tokens a second"),
        (number(time.tokens_per_s_per_device, f"{time.tokens_per_s_per_device:,.0f}"), "tokens a second and device"),
        (number(time.mfu_full, f"{time.mfu_full:.1%}"), f"MFU ({time.mfu_causal:.1%} with attention as masked)"),
        (number(time.bubble, f"{time.bubble:.1%}"), "bubble"),
        (number(peak.total_bytes, f"{peak.total_bytes / GIB:.1f} GiB"), f"of {peak.capacity_bytes / GIB:.0f} GiB, "),
    )
    items = [node("li", node("b", shown), node("span", words)) for shown, words in cards]
    items[-1].append(fits)
    lines = next(head(plan)).removeprefix(f"{plan.job.name}: ")
    return node(
        "header",
        node("h1", plan.job.name),
        node("p", lines),
        node("p", machine, class_="soft"),
        node("p", layout, class_="soft"),
        node("ul", *items, class_="cards"),
    )


def _time(plan: Plan) -> Element:
    longest = max((us for _, us in plan.time.parts), default=1.0) or 1.0
    step_us = plan.time.step_us
    rows: list[tuple[str | Element, ...]] = [
        (
            PART_NAMES[name],
            number(us, f"{us / 1e3:,.1f}"),
            number(us / step_us, f"{us / step_us:.1%}"),
            bar(us / longest),
        )
        for name, us in plan.time.parts
    ]
    rows.append(("step", number(step_us, f"{step_us / 1e3:,.1f}"), "", ""))
    made = table("time", "A step on the busiest pipeline rank", ("what", "ms", "share", ""), rows)
    return node("section", node("h2", "Time"), made)


def _kernels(plan: Plan) -> Element:
    rows = [
        (choice.op, choice.kernel, choice.reason, ", ".join(map(str, choice.passed_over))) for choice in plan.kernels
    ]
    made = table("kernels", f"On {plan.job.cluster.chip.device}", ("op", "kernel", "why", "passed over"), rows)
    return node("section", node("h2", "Kernels"), made)


def _sentences(title: str, sentences: Sequence[str]) -> Element:
    return node("section", node("h2", title), node("ul", *(node("li", sentence) for sentence in sentences)))
