"""Step time: the operations of every stage, the schedule they run by, and what of a step stands outside of it.

A stage's forward and backward add up its operations (``ridgeline.parallel.costs``). Transfers between stages run beside
the compute. Outside of the schedule stand the collectives of gradients and weights, less what is hidden beside compute,
and the optimizer's update.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import sub
from typing import NamedTuple

from ridgeline.core.flops import training_flops_per_token
from ridgeline.core.frozen import frozen
from ridgeline.core.job import Dpo, Job
from ridgeline.parallel.collectives import Collective
from ridgeline.parallel.costs import Costs, Parts, accumulate_us, costs_of, op_parts, swap_us, traffic_us
from ridgeline.parallel.held import WIDTHS, Held
from ridgeline.parallel.links import collective_us, spread_of_ranks
from ridgeline.parallel.mesh import Mesh, embedding_ranks, group_of
from ridgeline.parallel.ops import sizes_of
from ridgeline.parallel.overlap import hidden_us
from ridgeline.parallel.simulate import Timeline
from ridgeline.parallel.stages import StageMap
from ridgeline.parallel.work import Run, StageWork, swapped_bytes

UPDATE_BYTES = 42  # a parameter: norm and clipping read or write its gradient 3 times, Adam reads and writes the rest


@frozen(kw_only=True)
class StepTime:
    """How long a step takes, and where the time goes.

    Attributes:
        forward_us, backward_us: One microbatch on each stage.
        weight_us: Of ``backward_us``, what a split backward leaves for its weight gradients.
        p2p_us: A transfer across each boundary of stages.
        parts: What the busiest pipeline rank does with a step, ``(name, us)``; they add up to ``step_us``.
        step_us: One optimizer step.
        bubble: Idle share of all ranks' time in forwards and backwards, 0 .. 1.
        tokens_per_s: Of the whole job.
        flops_per_s: Of one device, with full attention, recomputed forwards not counted.
        mfu_full, mfu_causal: ``flops_per_s`` over the chip's cube peak, under each convention of attention.
    """

    forward_us: tuple[float, ...]
    backward_us: tuple[float, ...]
    weight_us: tuple[float, ...]
    p2p_us: tuple[float, ...]
    parts: tuple[tuple[str, float], ...]
    step_us: float
    bubble: float
    tokens_per_s: float
    tokens_per_s_per_device: float
    flops_per_s: float
    mfu_full: float
    mfu_causal: float


class StageTimes(NamedTuple):
    """One microbatch on each stage, and its transfer across each boundary of stages."""

    forwards: tuple[Parts, ...]
    backwards: tuple[Parts, ...]
    p2p_us: tuple[float, ...]
    recompute_when: str = "backward"

    @property
    def stage_us(self) -> dict[str, tuple[float, ...]]:
        """The time of each kind of action, as ``simulate`` takes it.

        Products of weight gradients, and adding them up, can wait; all else of a backward makes input gradients. What
        is recomputed ahead is no part of the backward; in bubbles it is the whole forward.
        """
        forward, whole = tuple(map(sum, self.forwards)), tuple(map(sum, self.backwards))
        weight = tuple(backward.weight + backward.accumulate for backward in self.backwards)
        again = forward
        if self.recompute_when == "advance":
            again = tuple(backward.recompute for backward in self.backwards)
            whole = tuple(map(sub, whole, again))
        return {"F": forward, "B": whole, "I": tuple(map(sub, whole, weight)), "W": weight, "R": again}

    def hidden_us(self, forward: int, backward: int) -> float:
        """What running the forward of one stage together with the backward of another hides.

        Each one's exchange between experts, as far as the other computes meanwhile.
        """
        one, two = self.forwards[forward], self.backwards[backward]
        return min(one.ep, sum(two) - two.ep) + min(two.ep, sum(one) - one.ep)


def plan_stage_times(
    job: Job, *, mesh: Mesh, stages: StageMap, held: Sequence[Held], work: Sequence[StageWork]
) -> StageTimes:
    """What a schedule needs to know of time."""
    owners = list(map(stages.owner, range(stages.num_stages)))
    forwards, backwards = stage_parts(job, mesh=mesh, held=held, work=work)
    return StageTimes(forwards, backwards, hops_us(job, mesh, owners), job.memory.recompute_when)


def plan_time(
    job: Job,
    *,
    mesh: Mesh,
    stages: StageMap,
    held: Sequence[Held],
    times: StageTimes,
    timeline: Timeline,
    collectives: Sequence[Collective],
) -> StepTime:
    """The time of one step whose schedule runs as ``timeline`` says."""
    costs = costs_of(job, mesh)
    forwards, backwards = times.forwards, times.backwards
    busy_us = timeline.busy_us
    busiest = max(range(mesh.pp), key=busy_us.__getitem__)
    total = Parts()
    for stage in stages.owned_by(busiest):
        total = total.plus(forwards[stage], job.num_slices).plus(backwards[stage], job.num_slices)
    spared = sum(total) - busy_us[busiest]
    if job.comm.moe_fb_overlap:  # pairs hide what experts exchange
        total = total._replace(ep=total.ep - spared)
    elif job.memory.recompute_when != "backward":  # the schedule says what is recomputed
        total = total._replace(recompute=total.recompute - spared)
    stage_us = times.stage_us
    exposed = max(_exposed_us(collectives, costs, stage_us, stages))
    owned = [[held[stage] for stage in stages.owned_by(pp_rank)] for pp_rank in range(mesh.pp)]
    update = max(update_us(job, mesh, params) for params in owned)
    step_us = timeline.makespan_us + exposed + update
    parts = (
        *((name, us) for name, us in zip(Parts._fields, total, strict=True) if us),
        ("bubble", timeline.makespan_us - busy_us[busiest]),
        ("dp", exposed),
        ("update", update),
    )
    return _step_time(job, times, parts, step_us, timeline.bubble)


def stage_parts(
    job: Job, *, mesh: Mesh, held: Sequence[Held], work: Sequence[StageWork]
) -> tuple[tuple[Parts, ...], tuple[Parts, ...]]:
    """The forward and the backward of one microbatch on each stage, in model order."""
    costs = costs_of(job, mesh)
    known: dict[Run, tuple[Parts, Parts]] = {}
    forwards, backwards = [], []
    for stage, one in enumerate(work):
        forward, backward = Parts(), Parts(accumulate=accumulate_us(held[stage].elements, job))
        for run in one.runs:
            key = run._replace(layers=1)
            if key not in known:
                known[key] = _run_parts(key, costs)
            forward = forward.plus(known[key][0], run.layers)
            backward = backward.plus(known[key][1], run.layers)
        if isinstance(job.objective, Dpo) and job.objective.loss != "simpo":
            forward = forward.plus(Parts(reference=sum(forward)))
        forwards.append(forward)
        backwards.append(backward)
    return tuple(forwards), tuple(backwards)


def _step_time(
    job: Job,
    times: StageTimes,
    parts: tuple[tuple[str, float], ...],
    step_us: float,
    bubble: float,
) -> StepTime:
    devices, seq_len, peak = job.cluster.world_size, job.batch.seq_len, job.cluster.chip.cube_flops
    tokens_per_s = job.batch.gbs * seq_len / step_us * 1e6
    full, causal = (
        tokens_per_s / devices * training_flops_per_token(job.model, seq_len, attention=convention)
        for convention in ("full", "causal")
    )
    stage_us = times.stage_us
    return StepTime(
        forward_us=stage_us["F"],
        backward_us=stage_us["B"],
        weight_us=stage_us["W"],
        p2p_us=times.p2p_us,
        parts=parts,
        step_us=step_us,
        bubble=bubble,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_device=tokens_per_s / devices,
        flops_per_s=full,
        mfu_full=full / peak,
        mfu_causal=causal / peak,
    )


def hops_us(job: Job, mesh: Mesh, owners: Sequence[int]) -> tuple[float, ...]:
    """Time of a transfer across each boundary of stages, told who owns each; 0 where one rank owns both."""
    sizes = sizes_of(job)
    stream = sizes.own_tokens * sizes.hidden * sizes.width
    pipeline = group_of(0, mesh, "pp")
    known = {
        (a, b): collective_us("p2p", stream, spread_of_ranks((pipeline[a], pipeline[b]), job.cluster), job.cluster)
        for a, b in set(pairwise(owners))
    }
    return tuple(0.0 if a == b else known[a, b] for a, b in pairwise(owners))


def _run_parts(run: Run, costs: Costs) -> tuple[Parts, Parts]:
    """Forward and backward of one layer (or the embedding, or the head)."""
    forward, backward = Parts(), Parts()
    for op in run.ops:
        once, back = op_parts(op, costs)
        forward, backward = forward.plus(once), backward.plus(back)
        if run.recomputes(op):
            backward = backward.plus(Parts(recompute=sum(once)))
    there, back = hidden_us(run.ops, costs)
    forward, backward = forward.plus(Parts(ep=-there)), backward.plus(Parts(ep=-back))
    if there and any(run.recomputes(op) for op in run.ops if op.name.endswith("dispatch")):
        backward = backward.plus(Parts(recompute=-there))
    if moved := swapped_bytes(run):
        chip = costs.job.cluster.chip
        forward = forward.plus(Parts(swap=swap_us(moved, chip, beside_us=sum(forward))))
        backward = backward.plus(Parts(swap=swap_us(moved, chip, beside_us=sum(backward))))
    return forward, backward


def update_us(job: Job, mesh: Mesh, held: Sequence[Held]) -> float:
    """Norm, clipping and Adam of a rank that holds these stages, which are bound by memory traffic."""
    shared = job.memory.distributed_optimizer
    owned = sum(
        params.dense / (mesh.dp * mesh.cp if shared else 1) + params.expert / (mesh.edp if shared else 1)
        for params in held
    )
    chip = job.cluster.chip
    update = traffic_us(owned * UPDATE_BYTES, chip)
    if job.memory.swap_optimizer:
        states = WIDTHS["fp32"] + 2 * WIDTHS[job.precision.moments]
        update += swap_us(owned * states, chip, beside_us=update)
    return update


def _exposed_us(
    collectives: Sequence[Collective], costs: Costs, stage_us: Mapping[str, Sequence[float]], stages: StageMap
) -> list[float]:
    """What collectives of gradients and weights add to each rank's step: all of it, or what the overlap leaves.

    Those of a chunk run beside its own first forward or last backward, wherever in the model a rank's chunks lie; the
    last bucket has nothing left to run beside.
    """
    exposed = [0.0] * stages.pp
    for phase, kind in (("step", ""), ("forward", "F"), ("backward", "B")):
        rows = [row for row in collectives if row.phase == phase and (not kind or row.axes in ("dp-cp", "edp"))]
        priced = [(row.counts, _collective_us(row, costs)) for row in rows]
        for pp_rank in range(stages.pp):
            total = sum(us * counts[pp_rank] for counts, us in priced)
            if kind:
                beside = sum(stage_us[kind][stage] for stage in stages.owned_by(pp_rank))
                last = max((us for counts, us in priced if counts[pp_rank]), default=0.0) / 2
                total = max(total - beside, last)
            exposed[pp_rank] += total
    return exposed


def _collective_us(row: Collective, costs: Costs) -> float:
    if row.joins_ends:
        spread = spread_of_ranks(embedding_ranks(group_of(0, costs.mesh, "pp")), costs.job.cluster)
    else:
        spread = costs.spread(row.axes)
    return collective_us(row.kind, row.size_bytes, spread, costs.job.cluster)
