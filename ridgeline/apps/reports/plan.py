"""A plan as a report: memory, time, collectives and kernels as tables, the pipeline drawn, and what was assumed."""

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ridgeline.core.params import num_active_params, num_params
from ridgeline.parallel.draw import draw
from ridgeline.parallel.plan import Plan

GIB = 2**30
MEMORY_COLUMNS = (
    *("params", "grads", "optimizer", "activations", "work", "buffers"),
    *("allowance", "links", "fragments", "runtime"),
)
PART_NAMES = {
    "gemm": "matrix products",
    "weight": "weight gradients",
    "attention": "attention",
    "elementwise": "norms, activations, rotary",
    "accumulate": "adding up gradients",
    "recompute": "recomputed forwards",
    "reference": "reference model",
    "swap": "waiting for the host",
    "tp": "tp communication",
    "cp": "cp communication",
    "ep": "ep communication",
    "bubble": "pipeline bubble",
    "dp": "dp communication, not hidden",
    "update": "optimizer",
}


def print_report(plan: Plan, console: Console, *, chosen: Sequence[str] = ()) -> None:
    """Print a plan.

    Args:
        plan: What to print.
        console: Where to; its width is that of the drawing.
        chosen: A sentence for each field that a preset's rule chose.
    """
    for part in report(plan, chosen=chosen, width=console.width):
        console.print(part)


def report(plan: Plan, *, chosen: Sequence[str], width: int) -> Iterator[RenderableType]:
    """The parts of a report, in order."""
    yield Text("\n".join(head(plan)))
    yield memory_table(plan)
    yield time_table(plan)
    if plan.collectives:
        yield collectives_table(plan)
    yield kernels_table(plan)
    if plan.mesh.pp > 1:
        yield Text("Pipeline: a row for each pp rank", style="bold")
        yield Text(drawing(plan, width=width), no_wrap=True, overflow="crop")
    for title, sentences, style in (
        ("Warnings", plan.warnings, "yellow"),
        ("Chosen for this preset", chosen, ""),
        ("Assumptions", plan.assumptions, ""),
    ):
        if sentences:
            yield Text(title, style=f"bold {style}")
            yield Text("\n".join(f"  - {sentence}" for sentence in sentences))


def memory_table(plan: Plan) -> Table:
    """Memory of each pipeline rank at its peak, by what it holds."""
    table = _table("Memory of a rank at its peak, GiB")
    for name in ("pp rank", "stages", *MEMORY_COLUMNS, "total", "of", "peak at", "first step"):
        left = name in ("pp rank", "stages", "peak at", "first step")
        table.add_column(name, justify="left" if left else "right")
    for rank in plan.memory:
        sizes = [f"{getattr(rank, f'{name}_bytes') / GIB:.2f}" for name in MEMORY_COLUMNS]
        total = Text(f"{rank.total_bytes / GIB:.2f}", style="" if rank.fits else "bold red")
        capacity = f"{rank.capacity_bytes / GIB:.0f}"
        peak = f"{rank.peak_at}, {rank.in_flight} in flight"
        first = f"{rank.first_step_bytes / GIB:.2f} at {rank.first_step_at}"
        table.add_row(str(rank.pp_rank), stages_text(plan, rank.pp_rank), *sizes, total, capacity, peak, first)
    return table


def time_table(plan: Plan) -> Table:
    """Time of a step by what it goes to, on the busiest pipeline rank."""
    table = _table("Time of a step on the busiest pp rank")
    for name in ("component", "ms", "share"):
        table.add_column(name, justify="left" if name == "component" else "right")
    for name, part_us in plan.time.parts:
        table.add_row(PART_NAMES[name], f"{part_us / 1e3:,.1f}", f"{part_us / plan.time.step_us:.1%}")
    table.add_section()
    table.add_row("step", f"{plan.time.step_us / 1e3:,.1f}", "")
    return table


def collectives_table(plan: Plan) -> Table:
    """Every collective of a step: how large, how often on each pipeline rank."""
    table = _table("Collectives of a step")
    for name in ("phase", "for", "kind", "over", "ranks", "size each", "times, by pp rank"):
        table.add_column(name, justify="right" if name in ("ranks", "size each") else "left")
    for row in plan.collectives:
        size = bytes_text(row.size_bytes)
        times = str(row.counts[0]) if len(set(row.counts)) == 1 else ", ".join(map(str, row.counts))
        table.add_row(row.phase, row.why, row.kind, row.axes, str(row.group_size), size, times)
    return table


def kernels_table(plan: Plan) -> Table:
    """The kernel of each op, why, and what was passed over."""
    table = _table(f"Kernels on {plan.job.cluster.chip.device}")
    for name in ("op", "kernel", "why", "passed over"):
        table.add_column(name)
    for choice in plan.kernels:
        table.add_row(choice.op, choice.kernel, choice.reason, ", ".join(map(str, choice.passed_over)))
    return table


def drawing(plan: Plan, *, width: int) -> str:
    """The pipeline of one step, drawn to the time each stage takes."""
    return draw(plan.timeline, width=width)


def head(plan: Plan) -> Iterator[str]:
    """A plan in a few lines: the job, the machine, the layout, then speed, MFU and memory."""
    job, mesh, time, model = plan.job, plan.mesh, plan.time, plan.job.model
    total, active = num_params(model), num_active_params(model)
    sizes = f"{total / 1e9:.2f}B parameters" + (f", {active / 1e9:.2f}B of them active" if active != total else "")
    chip = job.cluster.chip
    degrees = ("tp", "cp", "dp", "pp", "ep", "etp")
    shown = [
        f"{name}={getattr(mesh, name)}" for name in degrees if getattr(mesh, name) > 1 or name in ("tp", "dp", "pp")
    ]
    extras = [f"vpp={job.layout.vpp}"] * (job.layout.vpp > 1) + ["sp"] * job.layout.sp
    batch = f"gbs={job.batch.gbs} mbs={job.batch.mbs} seq_len={job.batch.seq_len}, {job.num_microbatches} microbatches"
    yield f"{job.name}: {model.num_layers} layers, {sizes}"
    yield f"{job.cluster.name}: {job.cluster.nodes} x {job.cluster.devices_per_node} {chip.name}"
    yield f"{' '.join((*shown, *extras))}, {batch}, {plan.schedule.name}"
    yield (
        f"step {time.step_us / 1e6:.2f} s, {time.tokens_per_s:,.0f} tokens/s "
        f"({time.tokens_per_s_per_device:,.0f} a device), {time.flops_per_s / 1e12:.1f} TFLOP/s a device"
    )
    yield (
        f"MFU {time.mfu_full:.1%} ({time.mfu_causal:.1%} counting attention as masked) "
        f"of {chip.cube_flops / 1e12:.1f} TFLOP/s, bubble {time.bubble:.1%}"
    )
    peak = plan.peak
    verdict = "fits" if peak.fits else "DOES NOT FIT"
    yield f"peak memory {peak.total_bytes / GIB:.1f} of {peak.capacity_bytes / GIB:.0f} GiB: {verdict}"


def bytes_text(size_bytes: int) -> str:
    """A size in the unit that suits it.

    Example:
        >>> bytes_text(4), bytes_text(16384), bytes_text(29360128), bytes_text(15_230_967_808)
        ('4 B', '16.0 KiB', '28.0 MiB', '14.2 GiB')
    """
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):.1f} {unit}"
    return f"{size_bytes} B"


def stages_text(plan: Plan, pp_rank: int) -> str:
    """The layers of each of a pipeline rank's stages, ``0-13`` or, with chunks, ``0-6 + 14-20``."""
    return " + ".join(_span(plan.stages.layers[stage]) for stage in plan.stages.owned_by(pp_rank))


def _span(layers: Sequence[int]) -> str:
    if not layers:
        return "none"
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold")
