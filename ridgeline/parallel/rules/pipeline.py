"""Rules of pipelines: stages, schedule, microbatches, and forwards run together with backwards.

Source:
    megatron-core 0.16.1, pipeline_parallel/schedules.py; MindSpeed, docs/features, for what it adds.
"""

from collections.abc import Iterator

from ridgeline.core.errors import Problem, multiples
from ridgeline.core.job import Job
from ridgeline.core.layout import INTERLEAVED, V_SHAPED
from ridgeline.parallel.stages import stage_problems


def stages(job: Job) -> Iterator[Problem]:
    layout = job.layout
    yield from stage_problems(
        job.model.num_layers,
        pp=layout.pp,
        vpp=layout.chunks,
        stages=layout.stages,
        noop_layers=layout.noop_layers,
        placement=layout.placement,
    )


DUALPIPE = ("dualpipe_v", "dualpipe_v_split")


def schedule(job: Job) -> Iterator[Problem]:
    layout, name = job.layout, job.layout.schedule_name
    if layout.vpp > 1 and layout.pp == 1:
        yield Problem("layout.vpp", layout.vpp, "needs pp > 1, since chunks alternate between ranks", "use 1")
    elif layout.vpp > 1 and name not in INTERLEAVED and name not in V_SHAPED:
        rule = f"runs one chunk a rank, not vpp={layout.vpp}"
        yield Problem("layout.schedule", name, rule, "use 'interleaved_1f1b' or leave it out")
    elif layout.vpp == 1 and name in INTERLEAVED:
        yield Problem("layout.schedule", name, "needs vpp > 1, chunks to interleave", "use '1f1b', or set layout.vpp")
    if layout.placement == "v":
        yield from _v_shaped(job)
    if name == "seq1f1b":
        yield from _sliced(job)
    elif layout.slices > 1:
        rule = f"are those of seq1f1b, which layout.schedule={name!r} is not"
        yield Problem("layout.slices", layout.slices, rule, "use 1, or set layout.schedule to 'seq1f1b'")


def _v_shaped(job: Job) -> Iterator[Problem]:
    """Source: MindSpeed 028de58c, docs/features/dualpipev.md and features_manager, DualpipeVFeature."""
    layout, name = job.layout, job.layout.schedule_name
    if layout.pp == 1:
        yield Problem("layout.schedule", name, "needs pp > 1, ranks to go down and up", "use '1f1b'")
    if layout.vpp > 1:
        yield Problem("layout.vpp", layout.vpp, f"must be 1: {name} has two chunks a rank of its own", "use 1")
    if name not in DUALPIPE:
        return
    if layout.stages is not None:
        rule = f"must be left out: {name} has as many layers on every stage, num_layers a multiple of 2*pp"
        yield Problem("layout.stages", layout.stages, rule, "use 'zb_v', or add layout.noop_layers")
    if layout.cp > 1:
        yield Problem("layout.cp", layout.cp, f"must be 1 with {name}", "use 1 or 'zb_v'")
    if job.comm.overlap_grad_reduce:
        rule = f"must be false with {name}, whose pairs leave no backward to reduce beside"
        yield Problem("comm.overlap_grad_reduce", True, rule, "set it to false")


def _sliced(job: Job) -> Iterator[Problem]:
    """Source: MindSpeed-LLM, docs/features/mindspore/seq1f1b.md: one sample a microbatch, no context parallelism."""
    layout, batch = job.layout, job.batch
    parts = layout.slices * (layout.tp if layout.sp else 1)
    if layout.slices == 1:
        yield Problem("layout.slices", 1, "must be > 1 with seq1f1b", "use 4, or '1f1b'")
    elif batch.seq_len % parts:
        rule = f"must be a multiple of {'slices*tp' if layout.sp else 'slices'}={parts} with seq1f1b"
        yield Problem("batch.seq_len", batch.seq_len, rule, multiples(batch.seq_len, parts))
    if layout.cp > 1:
        yield Problem("layout.cp", layout.cp, "must be 1 with seq1f1b, which itself cuts the sequence", "use 1")
    if batch.mbs > 1:
        yield Problem("batch.mbs", batch.mbs, "must be 1 with seq1f1b", "use 1")


def microbatches(job: Job) -> Iterator[Problem]:
    layout, batch = job.layout, job.batch
    if layout.pp == 1 or batch.gbs % (batch.mbs * job.dp):
        return
    count, step = job.num_microbatches, batch.mbs * job.dp
    if layout.schedule_name in DUALPIPE and count < 2 * layout.pp:
        rule = f"gives {count} microbatches; {layout.schedule_name} needs at least 2*pp={2 * layout.pp}"
        yield Problem("batch.gbs", batch.gbs, rule, f"raise it to {2 * layout.pp * step} or more")
    if layout.schedule_name == "zb_vpp" and layout.vpp > 1 and count % layout.pp:
        rule = f"gives {count} microbatches; zb_vpp needs a multiple of pp={layout.pp}"
        yield Problem("batch.gbs", batch.gbs, rule, multiples(batch.gbs, layout.pp * step))
    if layout.vpp == 1 or layout.schedule_name != "interleaved_1f1b":
        return
    group = layout.microbatch_group_size or layout.pp
    if group < layout.pp:
        yield Problem("layout.microbatch_group_size", group, f"must be >= pp={layout.pp}", f"use {layout.pp}")
    elif group > count:
        rule = f"must be <= num_microbatches={count} (gbs={batch.gbs} / (mbs={batch.mbs} * dp={job.dp}))"
        way_out = f"raise batch.gbs to {group * step} or more"
        yield Problem("layout.microbatch_group_size", group, rule, way_out)
    elif 0 < count % group < layout.pp:
        rule = f"leaves {count % group} of num_microbatches={count} over; the rest must be 0 or >= pp={layout.pp}"
        fitting = [m for m in range(layout.pp, count + 1) if not 0 < count % m < layout.pp]
        way_out = f"set layout.microbatch_group_size from {{{', '.join(map(str, fitting))}}}, or change batch.gbs"
        yield Problem("layout.microbatch_group_size", group, rule, way_out)


def pairs(job: Job) -> Iterator[Problem]:
    """Source: MindSpeed, docs/features/megatron_moe/megatron-moe-fb-overlap.md."""
    layout, comm, path = job.layout, job.comm, "comm.moe_fb_overlap"
    if not job.model.moes or layout.ep == 1:
        yield Problem(path, True, "hides what experts exchange over ep > 1, and nothing else", "set it to false")
    if layout.schedule_name not in ("1f1b", "interleaved_1f1b", *DUALPIPE):
        rule = f"has no forwards beside backwards, which {path} runs together"
        yield Problem("layout.schedule", layout.schedule_name, rule, "use '1f1b', 'interleaved_1f1b' or 'dualpipe_v'")
    if layout.etp > 1:
        yield Problem("layout.etp", layout.etp, f"must be 1 with {path}", "use 1")
    if comm.moe_dispatcher != "alltoall":
        yield Problem("comm.moe_dispatcher", comm.moe_dispatcher, f"must be 'alltoall' with {path}", "use 'alltoall'")
    if comm.overlap_grad_reduce:
        yield Problem("comm.overlap_grad_reduce", True, f"must be false with {path}", "set it to false")
