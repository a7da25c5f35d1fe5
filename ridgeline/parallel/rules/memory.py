"""Rules of what is kept, recomputed and swapped."""

from collections.abc import Iterator
from math import gcd

from ridgeline.core.errors import Problem, divisors, one_of
from ridgeline.core.job import FullRecompute, Job
from ridgeline.parallel.of_job import stages_of
from ridgeline.parallel.rules import pipeline


def recompute(job: Job) -> Iterator[Problem]:
    recompute = job.memory.recompute
    if isinstance(recompute, FullRecompute) and recompute.method == "uniform" and not any(pipeline.stages(job)):
        counts = {len(layers) for layers in stages_of(job).layers}
        layers = gcd(*counts)
        if layers % recompute.num_layers:
            rule = f"uniform groups must divide every stage's layers {sorted(counts)}"
            yield Problem("memory.recompute.num_layers", recompute.num_layers, rule, one_of(divisors(layers)))


def recompute_when(job: Job) -> Iterator[Problem]:
    """Source: MindSpeed, docs/features/recompute_independent_pipelining.md."""
    memory, path = job.memory, "memory.recompute_when"
    if memory.recompute_when == "backward":
        return
    if job.layout.schedule_name != "interleaved_1f1b":
        rule = f"goes with interleaved 1F1B, not {job.layout.schedule_name}"
        yield Problem(path, memory.recompute_when, rule, "use 'backward', or set layout.vpp > 1")
    if memory.recompute_when == "advance" and not isinstance(memory.recompute, FullRecompute):
        yield Problem(path, "advance", "needs layers that are recomputed whole", "set memory.recompute.kind to 'full'")
    if memory.recompute_when == "bubble" and (memory.recompute is not None or memory.swap_attention):
        rule = "chooses by itself what to recompute, and excludes memory.recompute and memory.swap_attention"
        yield Problem(path, "bubble", rule, "leave these out, or use 'backward'")
    if job.comm.moe_fb_overlap:
        yield Problem(path, memory.recompute_when, "excludes comm.moe_fb_overlap", "use 'backward'")


def stored_states(job: Job) -> Iterator[Problem]:
    """What MindSpeed's validators refuse: features_manager/memory and /optimizer of Ascend/MindSpeed 2.0.0."""
    memory, precision, recompute = job.memory, job.precision, job.memory.recompute
    if memory.swap_optimizer and not memory.distributed_optimizer:
        rule = "needs the distributed optimizer, whose shards it moves"
        yield Problem("memory.swap_optimizer", True, rule, "set memory.distributed_optimizer to true")
    if memory.swap_optimizer and precision.masters == "low_bits":
        rule = "moves masters, which precision.masters='low_bits' does not have"
        yield Problem("memory.swap_optimizer", True, rule, "set precision.masters to 'fp32'")
    if memory.swap_optimizer and precision.moments == "bf16":
        rule = "moves fp32 states, not precision.moments='bf16'"
        yield Problem("memory.swap_optimizer", True, rule, "set precision.moments to 'fp32'")
    if memory.swap_attention and job.adapter:
        rule = "cannot follow layers with adapters"
        yield Problem("memory.swap_attention", True, rule, "set it to false, or leave adapter out")
    if memory.swap_attention and isinstance(recompute, FullRecompute) and recompute.method == "uniform":
        rule = "has nothing to move when whole layers are recomputed"
        yield Problem("memory.swap_attention", True, rule, "set it to false, or memory.recompute.method to 'block'")
    if isinstance(recompute, FullRecompute) and recompute.stage_layers is not None:
        stages, counts = job.layout.pp * job.layout.vpp, recompute.stage_layers
        if len(counts) != stages or min(counts, default=0) < 0:
            rule = f"must be a count >= 0 for each of pp*vpp={stages} stages"
            yield Problem("memory.recompute.stage_layers", counts, rule)
