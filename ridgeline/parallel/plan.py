"""The plan of a job: what all ranks will do, decided before anything starts.

    plan(job) -> Plan    pure, in milliseconds, without torch

A known fault of the layout is repaired first and said as a warning; then every rule between specs is checked at once.
"""

from collections.abc import Iterator, Sequence

import attrs

from ridgeline.core.errors import PlanError
from ridgeline.core.frozen import frozen
from ridgeline.core.job import Job
from ridgeline.kernels.model_ops import model_ops, model_traits
from ridgeline.kernels.select import Choice, select
from ridgeline.parallel.check import job_problems
from ridgeline.parallel.collectives import Collective, plan_collectives
from ridgeline.parallel.held import plan_held
from ridgeline.parallel.known_wrong import refusals, repaired
from ridgeline.parallel.links import spread_of
from ridgeline.parallel.memory import ALLOWANCE, BAND, RankMemory, plan_memory
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.no_effect import no_effect
from ridgeline.parallel.of_job import mesh_of, stages_of
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.known import Pipeline, plan_schedule
from ridgeline.parallel.schedules.pairs import paired
from ridgeline.parallel.schedules.recompute import recompute_in_advance, recompute_in_bubble
from ridgeline.parallel.shards import ParamRow, padded_vocab, plan_shards
from ridgeline.parallel.simulate import Timeline, simulate
from ridgeline.parallel.stages import StageMap
from ridgeline.parallel.time import StageTimes, StepTime, plan_stage_times, plan_time
from ridgeline.parallel.work import stage_work

GIB = 2**30
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@frozen(kw_only=True)
class Plan:
    """What all ranks of a job will do.

    Attributes:
        job: As it will run, after repairs.
        mesh: Which rank sits where.
        stages: Which layers each pipeline stage owns.
        schedule: What each pipeline rank does, in order.
        timeline: When it does it, transfers between stages included.
        shards: How every parameter lies on the mesh.
        kernels: The kernel of every op, why, and what was passed over.
        collectives: Every collective of one step.
        memory: Of each pipeline rank, at its peak.
        time: Of one step.
        warnings: What the user should know, a sentence each; every repair is here.
        assumptions: What the numbers rest on, a sentence each.
    """

    job: Job
    mesh: Mesh
    stages: StageMap
    schedule: Schedule
    timeline: Timeline
    shards: tuple[ParamRow, ...]
    kernels: tuple[Choice, ...]
    collectives: tuple[Collective, ...]
    memory: tuple[RankMemory, ...]
    time: StepTime
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]

    @property
    def peak(self) -> RankMemory:
        """The pipeline rank that needs the most memory."""
        return max(self.memory, key=lambda rank: rank.total_bytes)


def plan(job: Job) -> Plan:
    """Plan a job.

    Raises:
        PlanError: No plan exists; every rule broken is named, with its way out.
    """
    job, repairs = repaired(job)
    problems = (*job_problems(job), *refusals(job))
    if problems:
        raise PlanError(problems)
    mesh, stages = mesh_of(job), stages_of(job)
    shards = plan_shards(job.model, job.layout, job.adapter)
    work = stage_work(job, stages)
    held = plan_held(job, mesh=mesh, stages=stages, shards=shards)
    parts = {"mesh": mesh, "stages": stages, "held": held}
    times = plan_stage_times(job, **parts, work=work)
    schedule = schedule_of(job, times)
    collectives = plan_collectives(job, **parts, work=work, schedule=schedule)
    hidden = times.hidden_us if job.comm.moe_fb_overlap else 0.0
    timeline = simulate(schedule, stage_us=times.stage_us, p2p_us=times.p2p_us, hidden_us=hidden)
    memory = plan_memory(job, **parts, work=work, schedule=schedule, collectives=collectives)
    kernels = kernels_of(job)
    return Plan(
        job=job,
        mesh=mesh,
        stages=stages,
        schedule=schedule,
        timeline=timeline,
        shards=shards,
        kernels=kernels,
        collectives=collectives,
        memory=memory,
        time=plan_time(job, **parts, times=times, timeline=timeline, collectives=collectives),
        warnings=(*repairs, *no_effect(job), *_warnings(job, mesh, memory, kernels)),
        assumptions=tuple(_assumptions(job)),
    )


def schedule_of(job: Job, times: StageTimes) -> Schedule:
    """The pipeline schedule of one step of a job, for the times its stages take; its pairs do run together."""
    layout = job.layout
    pipeline = Pipeline(
        pp=layout.pp,
        vpp=layout.chunks,
        num_microbatches=job.num_microbatches,
        microbatch_group_size=layout.microbatch_group_size if layout.vpp > 1 else None,
        slices=layout.slices,
        stage_us=times.stage_us,
        p2p_us=times.p2p_us,
    )
    schedule = plan_schedule(layout.schedule_name, pipeline)
    match job.memory.recompute_when:
        case "advance":
            return recompute_in_advance(schedule)
        case "bubble":
            limit = layout.pp * layout.vpp
            return recompute_in_bubble(schedule, limit=limit, stage_us=times.stage_us, p2p_us=times.p2p_us)
    return paired(schedule) if job.comm.moe_fb_overlap else attrs.evolve(schedule, pairs=())


def kernels_of(job: Job) -> tuple[Choice, ...]:
    """The kernel of every op of a job, on its cluster's device and in its dtype.

    Raises:
        LoweringError: An op has no kernel there.
    """
    traits = model_traits(job.model, tp=job.layout.tp, ep=job.layout.ep, etp=job.layout.etp)
    device, dtype = job.cluster.chip.device, DTYPES[job.precision.params]
    policy, deterministic = job.run.kernels, job.run.deterministic
    return tuple(
        select(op, device=device, dtype=dtype, traits=traits, policy=policy, deterministic=deterministic)
        for op in model_ops(job.model, ring=job.layout.context_degrees[0])
    )


def _warnings(job: Job, mesh: Mesh, memory: Sequence[RankMemory], kernels: Sequence[Choice]) -> Iterator[str]:
    layout, cluster, model = job.layout, job.cluster, job.model
    full = [rank for rank in memory if not rank.fits]
    if full:
        worst = max(full, key=lambda rank: rank.total_bytes)
        yield (
            f"does not fit: pp_rank={worst.pp_rank} needs {worst.total_bytes / GIB:.1f} GiB of the "
            f"{worst.capacity_bytes / GIB:.1f} GiB of a {cluster.chip.name}; raise tp, pp or ep, or recompute more"
        )
    for axes, degree in (("tp", layout.tp), ("etp", layout.etp)):
        if degree > 1 and spread_of(axes, mesh, cluster).nodes > 1:
            yield f"layout.{axes}={degree} spans nodes, whose links are slower; use at most {cluster.devices_per_node}"
    if layout.pp > 1 and job.num_microbatches < layout.pp:
        yield f"num_microbatches={job.num_microbatches} is below pp={layout.pp}: ranks stay idle; raise batch.gbs"
    pads = padded_vocab(model.vocab_size, layout) - model.vocab_size
    if pads:
        yield f"the vocabulary of {model.vocab_size} is padded by {pads} rows, to a multiple of tp*vocab_multiple"
    for choice in kernels:
        if choice.passed_over:
            yield f"{choice}; memory and time are those of fused kernels"
    if job.memory.distributed_optimizer and mesh.dp * mesh.cp == 1:
        yield "memory.distributed_optimizer has no effect with dp*cp=1"


def _assumptions(job: Job) -> Iterator[str]:
    chip, efficiency, links = job.cluster.chip, job.cluster.chip.efficiency, (job.cluster.intra, job.cluster.inter)
    yield f"chip {chip.name}: peak {chip.cube_flops / 1e12:.1f} TFLOP/s divides MFU ({chip.source})"
    yield (
        f"efficiencies: GEMM {efficiency.gemm:.2f} of the cube peak (half at sums over "
        f"{efficiency.gemm_half_depth:.0f}), attention's products {efficiency.attention_forward:.2f} forward and "
        f"{efficiency.attention_backward:.2f} backward, its softmax {efficiency.softmax_flops:.0f} vector FLOPs a "
        f"score, memory traffic {efficiency.memory:.2f} of HBM bandwidth, links {links[0].efficiency:.2f} within a "
        f"node and {links[1].efficiency:.2f} between nodes, {efficiency.launch_us:.0f} us a kernel"
    )
    if chip.step_error is None:
        yield f"no measured step of a {chip.name} was compared with its plan; see ridgeline calibrate"
    else:
        yield f"nine of ten measured steps of a {chip.name} lay within {chip.step_error:.0%} of their plans"
    yield "mfu_full counts attention over the whole sequence (Megatron's formula), mfu_causal what the mask leaves"
    if not job.memory.fused_accumulation:
        yield "gradients are added to the fp32 sum by a kernel of their own, not by the GEMM that makes them"
    yield "norms, SwiGLU, rotary positions and attention keep for their backwards what fused kernels keep"
    if job.layout.tp > 1:
        hidden = f"; {job.comm.tp_overlap} hides {efficiency.fused_overlap:.0%} of the others where compute allows"
        others = "; all others in a layer are waited for" if job.comm.tp_overlap == "none" else hidden
        yield f"a column-parallel backward's collectives run beside its two GEMMs{others}"
    if job.layout.slices > 1:
        yield "slices of a sequence are as long as each other and take equal times, as those of packed documents do"
    if job.comm.moe_overlap:
        beside = " and ".join(name.replace("_", " ") for name in job.comm.moe_overlap)
        yield f"{beside} hide {efficiency.overlap:.0%} of the tokens' ways between experts where compute allows"
    if job.comm.moe_fb_overlap:
        yield "a pair hides what either half sends between experts while the other computes, and nothing else"
    if job.layout.pp > 1:
        yield "transfers between stages run beside the compute; what depends on one waits for it"
    yield (
        f"the allocator's peak is expected within {BAND[0]:+.0%} .. {BAND[1]:+.0%} of allocated_bytes, as that of nine "
        f"published runs in ten is; whether it fits counts {ALLOWANCE:.0%} more of what is not static, and fragments"
    )
    if job.model.moes:
        yield "experts get equal shares of the tokens; a hot expert takes longer and more memory"
    if job.batch.packing == "eod_reset":
        yield "attention is counted as over whole samples; packed documents cost less"


def plan_data(plan: Plan) -> dict[str, object]:
    """A plan's numbers as plain data, for machines to read."""
    time, job = plan.time, plan.job
    return {
        "mesh": {axis: getattr(plan.mesh, axis) for axis in ("tp", "cp", "dp", "pp", "ep", "etp", "edp", "world_size")},
        "stages": [list(layers) for layers in plan.stages.layers],
        "schedule": {"name": plan.schedule.name, "num_microbatches": plan.schedule.num_microbatches},
        "kernels": {choice.op: choice.kernel for choice in plan.kernels},
        "memory": [_memory_data(rank) for rank in plan.memory],
        "time": {
            "step_us": time.step_us,
            "parts_us": dict(time.parts),
            "forward_us": list(time.forward_us),
            "backward_us": list(time.backward_us),
            "weight_us": list(time.weight_us),
            "bubble": time.bubble,
            "tokens_per_s": time.tokens_per_s,
            "tokens_per_s_per_device": time.tokens_per_s_per_device,
            "flops_per_s": time.flops_per_s,
            "mfu_full": time.mfu_full,
            "mfu_causal": time.mfu_causal,
        },
        "collectives": [row._asdict() | {"counts": list(row.counts)} for row in plan.collectives],
        "chip": {"name": job.cluster.chip.name, "cube_flops": job.cluster.chip.cube_flops},
        "warnings": list(plan.warnings),
        "assumptions": list(plan.assumptions),
    }


def _memory_data(rank: RankMemory) -> dict[str, object]:
    derived = {name: getattr(rank, name) for name in ("static_bytes", "allocated_bytes", "total_bytes", "fits")}
    return attrs.asdict(rank) | derived
