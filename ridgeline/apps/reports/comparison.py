"""Every number of two plans, side by side."""

from collections.abc import Iterator
from itertools import groupby

from rich.table import Table
from rich.text import Text

from ridgeline.apps.reports.plan import GIB, MEMORY_COLUMNS, PART_NAMES
from ridgeline.core.frozen import frozen
from ridgeline.parallel.plan import Plan


@frozen
class Figure:
    """One number of two plans.

    Attributes:
        section: ``step``, ``memory`` or ``time``.
        unit: GiB, ms, tokens/s or a share, which has none.
    """

    section: str
    name: str
    unit: str
    left: float
    right: float


def figures_of(left: Plan, right: Plan) -> Iterator[Figure]:
    """Every number of two plans, side by side; what one of them does not have counts 0 there."""
    times, peaks = (left.time, right.time), (left.peak, right.peak)
    yield Figure("step", "step", "ms", *(time.step_us / 1e3 for time in times))
    yield Figure("step", "tokens", "tokens/s", *(time.tokens_per_s for time in times))
    yield Figure("step", "tokens a device", "tokens/s", *(time.tokens_per_s_per_device for time in times))
    yield Figure("step", "MFU, full attention", "", *(time.mfu_full for time in times))
    yield Figure("step", "MFU, masked attention", "", *(time.mfu_causal for time in times))
    yield Figure("step", "bubble", "", *(time.bubble for time in times))
    for name in (*MEMORY_COLUMNS, "total"):
        yield Figure("memory", name, "GiB", *(getattr(peak, f"{name}_bytes") / GIB for peak in peaks))
    yield Figure("memory", "of", "GiB", *(peak.capacity_bytes / GIB for peak in peaks))
    parts = [dict(time.parts) for time in times]
    for name, words in PART_NAMES.items():
        if any(name in part for part in parts):
            yield Figure("time", words, "ms", *(part.get(name, 0.0) / 1e3 for part in parts))


def comparison_table(left: str, right: str, figures: tuple[Figure, ...]) -> Table:
    """The figures, a section each for the step, the fullest rank's memory and the busiest rank's time."""
    table = Table()
    for name in ("", "", "unit", left, right, "change"):
        table.add_column(Text(name), justify="left" if name in ("", "unit") else "right")
    for section, rows in groupby(figures, lambda figure: figure.section):
        for index, row in enumerate(rows):
            numbers = number_text(row.left), number_text(row.right), change_text(row)
            table.add_row("" if index else section, row.name, row.unit, *numbers)
        table.add_section()
    return table


def number_text(value: float) -> str:
    """A number as it is read."""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3f}"


def change_text(figure: Figure) -> str:
    """By what share the right number differs from the left one."""
    if figure.left == figure.right:
        return ""
    return f"{figure.right / figure.left - 1:+.1%}" if figure.left else "new"
