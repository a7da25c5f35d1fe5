"""A trace beside its plan, for people and as data: memory, operations, collectives, and what the trace rests on."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgeline.apps.reports.plan import bytes_text
from ridgeline.parallel.plan import Plan
from ridgeline.parallel.traced import Comparison, Trace, TracedAction, TracedOp

GIB = 2**30
MAKERS, OPS, SEQUENCE = 10, 20, 12
"""Rows shown of what makes tensors, of operations, and of a schedule's actions."""


def print_trace(plan: Plan, trace: Trace, comparison: Comparison, console: Console) -> None:
    """Print a trace beside its plan."""
    for line in _head(plan, trace, comparison):
        console.print(line, highlight=False, soft_wrap=True)
    for table in (
        _memory_table(comparison),
        _makers_table(trace),
        _actions_table(comparison),
        _ops_table(trace),
        _collectives_table(comparison),
    ):
        console.print()
        console.print(table)
    console.print()
    console.print(Text("The trace rests on", style="bold"))
    for sentence in rests_on(plan, trace):
        console.print(f"  - {sentence}", highlight=False, soft_wrap=True)


def trace_data(plan: Plan, trace: Trace, comparison: Comparison) -> dict[str, object]:
    """The same as plain data, with every operation."""
    return {
        "rank": trace.rank,
        "world_size": plan.mesh.world_size,
        "seconds": trace.seconds,
        "peak": {
            "planned_bytes": comparison.planned_bytes,
            "traced_bytes": comparison.traced_bytes,
            "error": comparison.error,
        },
        "memory": [row._asdict() for row in comparison.memory],
        "peak_by_module": dict(trace.peak),
        "actions": [
            {"planned": {**point._asdict(), "total_bytes": point.total_bytes}, "traced": traced._asdict()}
            for point, traced in comparison.actions
        ],
        "samples": [sample._asdict() for sample in trace.samples],
        "flops": trace.flops,
        "ops": [op._asdict() for op in trace.ops],
        "collectives": [row._asdict() for row in comparison.collectives],
        "traced_collectives": [{**one._asdict(), "ranks": list(one.ranks)} for one in trace.collectives],
        "rests_on": list(rests_on(plan, trace)),
    }


def rests_on(plan: Plan, trace: Trace) -> Iterator[str]:
    """What a reader must know of a trace, a sentence each."""
    yield "it is a later step, whose optimizer has its moments; what a kernel allocates inside is not seen"
    yield "nothing is collected within the step: cycles of references live as long as Python may let them"
    if plan.job.model.moes:
        yield (
            "experts get equal shares of the tokens, as the plan declares: routers choose in turn, every rank is taken "
            "to send what this one does, and all-to-alls have the sizes that follow"
        )
    if (balance := plan.job.memory.moe_balance) != 1.0:
        yield f"memory.moe_balance={balance}: the plan counts on a busier rank than the trace, which has equal shares"
    yield "FLOPs are of matrix products and attention, the latter over the whole rectangle of queries and keys"
    if trace.reads:
        places = ", ".join(f"{place} ({count})" for place, count in trace.reads)
        yield f"numbers that nothing computed were read as 1.0: {places}"


def _head(plan: Plan, trace: Trace, comparison: Comparison) -> Iterator[str]:
    wrong = len(comparison.differing)
    yield f"{plan.job.name}: rank {trace.rank} of {plan.mesh.world_size}, traced in {trace.seconds:.0f} s of a core"
    yield (
        f"peak of live tensors: planned {comparison.planned_bytes / GIB:.2f} GiB, traced "
        f"{comparison.traced_bytes / GIB:.2f} GiB, plan over trace {comparison.error:+.1%}"
    )
    verdict = "all as planned" if not wrong else f"{wrong} of {len(comparison.collectives)} kinds are not as planned"
    operations = sum(op.times for op in trace.ops)
    yield f"collectives: {verdict}; {trace.flops / 1e12:,.1f} TFLOPs in {operations:,} operations"


def _table(title: str, *columns: str, left: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table


def _memory_table(comparison: Comparison) -> Table:
    table = _table("Live tensors at either peak, GiB", "component", "planned", "traced", left=("component",))
    for row in comparison.memory:
        table.add_row(row.component, f"{row.planned / GIB:.3f}", f"{row.traced / GIB:.3f}")
    table.add_section()
    table.add_row("all", f"{comparison.planned_bytes / GIB:.3f}", f"{comparison.traced_bytes / GIB:.3f}")
    return table


def _makers_table(trace: Trace) -> Table:
    table = _table("Made by, at the traced peak", "module", "bytes", left=("module",))
    for module, size in trace.peak[:MAKERS]:
        table.add_row(module, bytes_text(size))
    return table


def _actions_table(comparison: Comparison) -> Table:
    columns = "action", "planned peak", "traced peak", "planned after", "traced after", "at the traced peak"
    table = _table("Memory over time, GiB", *columns, left=("action", "at the traced peak"))
    shown = comparison.actions
    hidden = len(shown) - SEQUENCE if len(shown) > SEQUENCE + 1 else 0
    highest = max(shown, key=lambda pair: pair[1].peak_bytes)
    for index, (point, traced) in enumerate(shown):
        if hidden and SEQUENCE - 3 <= index < len(shown) - 3 and (point, traced) != highest:
            if index == SEQUENCE - 3:
                table.add_row("...", *[""] * (len(columns) - 1))
            continue
        table.add_row(traced.at, *_levels(point.total_bytes, traced, point.after_bytes), traced.module)
    return table


def _levels(peak: int, traced: TracedAction, after: int) -> Iterator[str]:
    yield from (f"{size / GIB:.3f}" for size in (peak, traced.peak_bytes, after, traced.after_bytes))


def _ops_table(trace: Trace) -> Table:
    title = f"Operations of a step, the {OPS} that move the most bytes; --json has all"
    table = _table(
        title, "phase", "module", "op", "times", "TFLOPs", "read and written", left=("phase", "module", "op")
    )
    for op in sorted(trace.ops, key=_bytes)[:OPS]:
        flops = f"{op.flops / 1e12:,.2f}" if op.flops else ""
        table.add_row(op.phase, op.module, op.op, str(op.times), flops, bytes_text(op.size_bytes))
    return table


def _bytes(op: TracedOp) -> int:
    return -op.size_bytes


def _collectives_table(comparison: Comparison) -> Table:
    columns = "kind", "over", "ranks", "size each", "planned", "traced", "for"
    table = _table("Collectives of a step", *columns, left=("kind", "over", "for"))
    for row in comparison.collectives:
        style = "" if row.planned == row.traced else "bold red"
        counts = str(row.planned), str(row.traced)
        table.add_row(
            row.kind, row.axes, str(row.group_size), bytes_text(row.size_bytes), *counts, row.why, style=style
        )
    return table
