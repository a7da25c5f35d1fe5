"""Step time: every operation by a roofline with stated efficiencies, every collective by its links, then the schedule.

    GEMM        2mkn / (cube peak * efficiency), the efficiency falling where a dim is small
    attention   the FLOPs its mask leaves; the backward has 2.5 times the forward's
    the rest    memory traffic / (HBM bandwidth * efficiency)

A backward of a GEMM costs two forwards. Collectives of a column-parallel linear's backward run beside its two products,
as Megatron-core queues them; all others within a layer are waited for.

Source:
    GEMM on a 910B2: 315 TFLOP/s at 4096^3 and 301 at 8192^3, 0.89 and 0.85 of its cube peak (github.com/zzc0721/
    torch-performance-test-data, issue 109). Attention 0.6 to 0.7 forward and 0.5 to 0.6 backward, HBM 0.6 to 0.75: what
    is usually seen on this chip; no measurement is public. Backward of attention: 5 products for 2, arXiv 2205.14135.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import sub
from types import MappingProxyType
from typing import NamedTuple

from ridgeline.core.flops import training_flops_per_token
from ridgeline.core.frozen import frozen
from ridgeline.core.job import Job
from ridgeline.parallel.collectives import Collective
from ridgeline.parallel.held import Held
from ridgeline.parallel.links import Spread, collective_us, spread_of, spread_of_ranks
from ridgeline.parallel.mesh import Mesh, embedding_ranks, group_of
from ridgeline.parallel.ops import Comm, Op, sizes_of
from ridgeline.parallel.simulate import Timeline
from ridgeline.parallel.stages import StageMap
from ridgeline.parallel.work import Run, StageWork

UPDATE_BYTES = 42  # a parameter: norm and clipping read or write its gradient 3 times, Adam reads and writes the rest
ACCUMULATE_BYTES = 10  # a parameter and microbatch: its bf16 gradient is read, the fp32 sum read and written
COLUMN_PARALLEL = ("linear_qkv", "linear_fc1", "head")


class Efficiency(NamedTuple):
    """Shares of a chip's peaks that are reached, and what starting an operation costs.

    Attributes:
        half_dim: A GEMM whose smallest dim is this runs at half of ``gemm``.
    """

    gemm: float
    half_dim: int
    attention_forward: float
    attention_backward: float
    memory: float
    launch_us: float


EFFICIENCIES: Mapping[str, Efficiency] = MappingProxyType(
    {
        "npu": Efficiency(0.87, 64, 0.65, 0.55, 0.68, 4.0),
        "cuda": Efficiency(0.80, 64, 0.60, 0.50, 0.80, 4.0),
        "cpu": Efficiency(0.60, 16, 0.20, 0.20, 0.50, 10.0),
    }
)


class Parts(NamedTuple):
    """Microseconds by what they are spent on."""

    gemm: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    accumulate: float = 0.0
    recompute: float = 0.0
    tp: float = 0.0
    cp: float = 0.0
    ep: float = 0.0

    def plus(self, other: "Parts", times: float = 1.0) -> "Parts":
        """The sum of both, the other one ``times`` times."""
        return Parts(*(mine + theirs * times for mine, theirs in zip(self, other, strict=True)))


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

    @property
    def stage_us(self) -> dict[str, tuple[float, ...]]:
        """The time of each kind of action, as ``simulate`` takes it.

        Of a backward's two products for each matrix product one is a weight gradient. All else makes input gradients.
        """
        weight = tuple(backward.gemm / 2 + backward.accumulate for backward in self.backwards)
        whole = tuple(map(sum, self.backwards))
        return {"F": tuple(map(sum, self.forwards)), "B": whole, "I": tuple(map(sub, whole, weight)), "W": weight}


class _Costs(NamedTuple):
    """What the cost of an operation depends on besides the operation."""

    job: Job
    mesh: Mesh
    efficiency: Efficiency
    spreads: dict[str, Spread]

    def spread(self, axes: str) -> Spread:
        """Where the groups over some axes lie, looked up once."""
        if axes not in self.spreads:
            self.spreads[axes] = spread_of(axes, self.mesh, self.job.cluster)
        return self.spreads[axes]


def plan_stage_times(
    job: Job, *, mesh: Mesh, stages: StageMap, held: Sequence[Held], work: Sequence[StageWork]
) -> StageTimes:
    """What a schedule needs to know of time."""
    return StageTimes(*stage_parts(job, mesh=mesh, held=held, work=work), hops_us(job, mesh, stages))


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
    costs = _Costs(job, mesh, EFFICIENCIES[job.cluster.chip.device], {})
    stage_us, forwards, backwards = times.stage_us, times.forwards, times.backwards
    forward_us, backward_us = stage_us["F"], stage_us["B"]
    busy_us = timeline.busy_us
    busiest = max(range(mesh.pp), key=busy_us.__getitem__)
    total = Parts()
    for stage in stages.owned_by(busiest):
        total = total.plus(forwards[stage], job.num_slices).plus(backwards[stage], job.num_slices)
    exposed = max(_exposed_us(collectives, pp_rank, costs, forward_us, backward_us) for pp_rank in range(mesh.pp))
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
    costs = _Costs(job, mesh, EFFICIENCIES[job.cluster.chip.device], {})
    known: dict[Run, tuple[Parts, Parts]] = {}
    forwards, backwards = [], []
    for stage, one in enumerate(work):
        forward, backward = Parts(), Parts(accumulate=_accumulate_us(held[stage].elements, costs))
        for run in one.runs:
            key = run._replace(layers=1)
            if key not in known:
                known[key] = _run_parts(key, costs)
            forward = forward.plus(known[key][0], run.layers)
            backward = backward.plus(known[key][1], run.layers)
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


def hops_us(job: Job, mesh: Mesh, stages: StageMap) -> tuple[float, ...]:
    """Time of a transfer across each boundary of stages; 0 where one rank owns both."""
    sizes = sizes_of(job)
    stream = sizes.own_tokens * sizes.hidden * sizes.width
    pipeline = group_of(0, mesh, "pp")
    owners = [pipeline[stages.owner(stage)] for stage in range(stages.num_stages)]
    return tuple(
        0.0 if a == b else collective_us("p2p", stream, spread_of_ranks((a, b), job.cluster), job.cluster)
        for a, b in pairwise(owners)
    )


def forward_parts(op: Op, *, job: Job, mesh: Mesh) -> Parts:
    """The forward of one operation of a job."""
    return _forward_parts(op, _Costs(job, mesh, EFFICIENCIES[job.cluster.chip.device], {}))


def _run_parts(run: Run, costs: _Costs) -> tuple[Parts, Parts]:
    """Forward and backward of one layer (or the embedding, or the head)."""
    forward, backward = Parts(), Parts()
    for op in run.ops:
        once = _forward_parts(op, costs)
        forward = forward.plus(once)
        backward = backward.plus(_backward_parts(op, once, costs))
        if run.recomputes(op):
            backward = backward.plus(Parts(recompute=sum(once)))
    return forward, backward


def _forward_parts(op: Op, costs: _Costs) -> Parts:
    chip, efficiency = costs.job.cluster.chip, costs.efficiency
    gemm = sum(_gemm_us(*gemm, costs) for gemm in op.gemms) * op.gemm_repeats
    attention = op.attention_flops / (chip.cube_flops * efficiency.attention_forward) * 1e6
    elementwise = op.moved_bytes / (chip.hbm_bandwidth * efficiency.memory) * 1e6
    return _with_comms(
        Parts(
            gemm=gemm,
            attention=attention + (efficiency.launch_us if attention else 0.0),
            elementwise=elementwise + (efficiency.launch_us if elementwise else 0.0),
        ),
        op,
        "F",
        costs,
    )


def _backward_parts(op: Op, forward: Parts, costs: _Costs) -> Parts:
    efficiency = costs.efficiency
    slower = 2.5 * efficiency.attention_forward / efficiency.attention_backward
    compute = Parts(gemm=2 * forward.gemm, attention=slower * forward.attention, elementwise=2 * forward.elementwise)
    return _with_comms(compute, op, "B", costs)


def _with_comms(parts: Parts, op: Op, phase: str, costs: _Costs) -> Parts:
    hidden = parts.gemm / 2 if phase == "B" and op.name in COLUMN_PARALLEL else 0.0
    added = {"tp": 0.0, "cp": 0.0, "ep": 0.0}
    for comm in op.comms:
        if comm.phase == phase:
            us = collective_us(comm.kind, comm.size_bytes, costs.spread(comm.axes), costs.job.cluster)
            added[_budget(comm)] += max(0.0, us * comm.repeats - hidden)
    return parts._replace(**added)


def _budget(comm: Comm) -> str:
    if comm.axes in ("ep", "etp", "etp-ep"):
        return "ep"
    return "cp" if comm.axes == "cp" else "tp"


def _gemm_us(m: int, k: int, n: int, costs: _Costs) -> float:
    efficiency = costs.efficiency
    smallest = min(m, k, n)
    reached = efficiency.gemm * smallest / (smallest + efficiency.half_dim)
    return 2 * m * k * n / (costs.job.cluster.chip.cube_flops * reached) * 1e6 + efficiency.launch_us


def _accumulate_us(elements: int, costs: _Costs) -> float:
    chip = costs.job.cluster.chip
    return elements * ACCUMULATE_BYTES / (chip.hbm_bandwidth * costs.efficiency.memory) * 1e6


def update_us(job: Job, mesh: Mesh, held: Sequence[Held]) -> float:
    """Norm, clipping and Adam of a rank that holds these stages, which are bound by memory traffic."""
    shared = job.memory.distributed_optimizer
    owned = sum(
        params.dense / (mesh.dp * mesh.cp if shared else 1) + params.expert / (mesh.edp if shared else 1)
        for params in held
    )
    chip = job.cluster.chip
    return owned * UPDATE_BYTES / (chip.hbm_bandwidth * EFFICIENCIES[chip.device].memory) * 1e6


def _exposed_us(
    collectives: Sequence[Collective],
    pp_rank: int,
    costs: _Costs,
    forward_us: tuple[float, ...],
    backward_us: tuple[float, ...],
) -> float:
    """What collectives of gradients and weights add to a step: all of it, or what the overlap leaves."""
    exposed = 0.0
    for row in collectives:
        count = row.counts[pp_rank]
        if not count or (row.phase != "step" and row.axes not in ("dp-cp", "edp")):
            continue
        ends = row.axes == "pp" and row.group_size == 2  # the tied embedding's group is the pipeline's first and last
        spread = (
            spread_of_ranks(embedding_ranks(group_of(0, costs.mesh, "pp")), costs.job.cluster)
            if ends
            else costs.spread(row.axes)
        )
        us = collective_us(row.kind, row.size_bytes, spread, costs.job.cluster) * count
        if row.phase != "step":  # the last bucket has nothing left to run beside
            beside = (forward_us if row.phase == "forward" else backward_us)[pp_rank]
            us = max(us - beside, us / count / 2)
        exposed += us
    return exposed
