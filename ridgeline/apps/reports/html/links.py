"""What a step sends, by link: each collective with its bytes within a node and across nodes, and its time."""

from xml.etree.ElementTree import Element

from ridgeline.apps.reports.html.nodes import bar, legend, node, number, table
from ridgeline.apps.reports.plan import bytes_text
from ridgeline.parallel.link_use import LinkUse, link_uses
from ridgeline.parallel.plan import Plan

COLUMNS = ("for", "phase", "kind", "over", "nodes x ranks", "size each", "times", "within a node", "across nodes")


def links_section(plan: Plan) -> Element:
    """Communication of a step on the pipeline rank that has the most of each."""
    uses = link_uses(plan.job, mesh=plan.mesh, stages=plan.stages, collectives=plan.collectives)
    heading = node("h2", "Communication")
    if not uses:
        return node("section", heading, node("p", "A rank alone sends nothing.", class_="soft"))
    intra, inter = (sum(getattr(use, f"{where}_bytes") for use in uses) for where in ("intra", "inter"))
    text = (
        f"In a step a rank sends {bytes_text(intra)} within its node and {bytes_text(inter)} across nodes, on the "
        "pipeline rank that has the most of each. Times are of all in a step, one after the other; some run beside "
        "compute, so they do not add up to the step's."
    )
    words = legend((("intra", "within a node"), ("inter", "across nodes")))
    longest = max(use.us for use in uses)
    caption = "Collectives of a step"
    rows = [_row(use, longest) for use in uses]
    return node(
        "section", heading, node("p", text, class_="soft"), words, table("links", caption, (*COLUMNS, "ms", ""), rows)
    )


def _row(use: LinkUse, longest: float) -> tuple[str | Element, ...]:
    row, spread = use.collective, use.spread
    where = "intra" if spread.nodes == 1 else "inter"
    return (
        row.why,
        row.phase,
        row.kind.replace("_", "-"),
        row.axes,
        f"{spread.nodes} x {spread.per_node}",
        number(row.size_bytes, bytes_text(row.size_bytes)),
        number(max(row.counts), f"{max(row.counts)}"),
        number(use.intra_bytes, bytes_text(use.intra_bytes) if use.intra_bytes else "-"),
        number(use.inter_bytes, bytes_text(use.inter_bytes) if use.inter_bytes else "-"),
        number(use.us, f"{use.us / 1e3:,.2f}"),
        bar(use.us / longest if longest else 0.0, where),
    )
