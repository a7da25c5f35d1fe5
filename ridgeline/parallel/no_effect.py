"""Settings that are legal and do nothing."""

from collections.abc import Iterator

from ridgeline.core.job import Job, SelectiveRecompute
from ridgeline.core.params import block_params, linear_of


def no_effect(job: Job) -> Iterator[str]:
    """Settings that are legal and do nothing in this job, a sentence each."""
    layout, recompute = job.layout, job.memory.recompute
    if layout.microbatch_group_size is not None and layout.schedule_name != "interleaved_1f1b":
        group = layout.microbatch_group_size
        yield f"layout.microbatch_group_size={group} has no effect with schedule {layout.schedule_name}"
    if layout.etp > 1 and not job.model.moes:
        yield f"layout.etp={layout.etp} has no effect, since no layer holds experts"
    if job.memory.moe_balance > 1 and layout.ep == 1:
        yield f"memory.moe_balance={job.memory.moe_balance} has no effect with ep=1: a rank holds every expert"
    yield from _idle_overlap(job)
    yield from _idle_targets(job)
    if job.adapter and job.precision.masters == "low_bits":
        yield "precision.masters='low_bits' saves next to nothing: only adapters have masters"
    if isinstance(recompute, SelectiveRecompute):
        kinds = {part.kind for b in job.model.kinds for part in (b.mixer, b.feed_forward, b.shortcut) if part}
        for module in recompute.modules:
            needs = "latent_attention" if module == "mla_up_proj" else module
            if needs in ("mlp", "moe", "latent_attention") and needs not in kinds:
                yield f"memory.recompute.modules: {module!r} has no effect, since no layer holds one"


def _idle_targets(job: Job) -> Iterator[str]:
    if (adapter := job.adapter) is None:
        return
    blocks = {run.block for run in job.model.blocks}
    there = {linear_of(param) for block in blocks for param in block_params(block, job.model)}
    for target in adapter.targets:
        if target not in there:
            yield f"adapter.targets: {target!r} has no effect, since no layer has a linear of that name"


def _idle_overlap(job: Job) -> Iterator[str]:
    layout, comm, moes = job.layout, job.comm, job.model.moes
    if comm.moe_overlap and (not moes or layout.ep * (layout.etp if comm.moe_dispatcher == "allgather" else 1) == 1):
        yield f"comm.moe_overlap={comm.moe_overlap} has no effect: no tokens are sent to experts of other ranks"
    elif "shared_experts" in comm.moe_overlap and all(moe.shared_ffn is None for moe in moes):
        yield "comm.moe_overlap: 'shared_experts' has no effect, since no layer holds any"
    elif "permutation" in comm.moe_overlap and comm.moe_dispatcher != "allgather":
        yield "comm.moe_overlap: 'permutation' has no effect where tokens are not gathered"
