"""Rules of what communication overlaps with, and of how tokens reach their experts."""

from collections.abc import Iterator

from ridgeline.core.errors import Problem
from ridgeline.core.job import Job
from ridgeline.parallel.rules.pipeline import pairs


def overlap(job: Job) -> Iterator[Problem]:
    if job.comm.overlap_param_gather and not job.memory.distributed_optimizer:
        rule = "needs the distributed optimizer, whose parameters it gathers"
        yield Problem("comm.overlap_param_gather", True, rule, "set memory.distributed_optimizer to true")
    if job.comm.moe_fb_overlap:
        yield from pairs(job)
    if job.comm.tp_overlap != "none" and not job.layout.sp:
        rule = "hides the gathers and scatters of sequence parallel, which is off"
        yield Problem("comm.tp_overlap", job.comm.tp_overlap, rule, "set layout.sp to true, or use 'none'")


def dispatch(job: Job) -> Iterator[Problem]:
    """Source: Ascend/MindSpeed 2.1.0, features_manager/moe."""
    layout, comm = job.layout, job.comm
    if comm.moe_dispatcher == "alltoall_seq" and job.model.moes and layout.etp > 1:
        path = "comm.moe_dispatcher"
        if layout.etp != layout.tp or not layout.order.startswith("tp"):
            rule = f"exchanges tokens for columns over tp={layout.tp}, which must be the ranks of etp={layout.etp}"
            yield Problem(path, comm.moe_dispatcher, rule, f"use 'alltoall', or layout.etp=1 or {layout.tp}")
        elif job.model.hidden % layout.etp:
            rule = (
                f"splits the hidden={job.model.hidden} columns of a token over etp={layout.etp}, which must divide it"
            )
            yield Problem(path, comm.moe_dispatcher, rule, "use 'alltoall'")
    if comm.moe_overlap and comm.moe_fb_overlap:
        rule = "excludes comm.moe_fb_overlap, which hides the same exchange behind another microbatch"
        yield Problem("comm.moe_overlap", comm.moe_overlap, rule, "keep one of the two")
    if "weight_gradients" in comm.moe_overlap and comm.tp_overlap == "mc2":
        rule = "excludes comm.tp_overlap='mc2'"
        yield Problem("comm.moe_overlap", comm.moe_overlap, rule, "leave 'weight_gradients' out, or use 'coc'")
