"""Two plans as a page: the fields that differ, and every number of both with its bars."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from xml.etree.ElementTree import Element

from ridgeline.apps.reports.comparison import Figure, change_text, number_text
from ridgeline.apps.reports.html.nodes import bar, legend, node, number, table
from ridgeline.apps.reports.html.page import page
from ridgeline.core.diff import Change, spelled

TITLES = {"step": "Step", "memory": "Memory of the fullest rank", "time": "Time of the busiest rank"}

CAPTION = "Bars are against the longer of their two"


def comparison_page(left: str, right: str, *, changes: Sequence[Change], figures: Sequence[Figure]) -> str:
    """A comparison as the text of an HTML file that needs no other.

    Args:
        left, right: What the jobs are called.
        changes: The fields in which they differ.
        figures: Every number of their plans.
    """
    heading = node("header", node("h1", f"{left} and {right}"), legend((("left", left), ("right", right))))
    rows = [(change.path, spelled(change.left), spelled(change.right)) for change in changes]
    fields = table("changes", "Fields that differ", ("field", left, right), rows) if rows else node("p", "None.")
    jobs = node("section", node("h2", "Jobs"), fields)
    return page(f"{left} and {right}: plans", heading, jobs, *_sections(left, right, figures))


def _sections(left: str, right: str, figures: Sequence[Figure]) -> Iterator[Element]:
    for section, grouped in groupby(figures, lambda figure: figure.section):
        rows = [_row(figure) for figure in grouped]
        columns = ("what", "unit", left, right, "change", "")
        yield node("section", node("h2", TITLES[section]), table(section, CAPTION, columns, rows))


def _row(figure: Figure) -> tuple[str | Element, ...]:
    most = max(figure.left, figure.right) or 1.0
    bars = node("span", bar(figure.left / most, "left"), bar(figure.right / most, "right"), class_="bars")
    numbers = (number(value, number_text(value)) for value in (figure.left, figure.right))
    return figure.name, figure.unit, *numbers, change_text(figure), bars
