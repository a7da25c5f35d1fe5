"""Memory of every pipeline rank: what is held all the time, what the schedule keeps in flight, and the peak of both.

All ranks of one pipeline rank hold the same. The estimate errs high: where a tensor's life is open to doubt it lives.

    params      weights, in the dtype they compute in
    grads       the accumulation buffer
    optimizer   fp32 masters (bf16 only) and two fp32 moments, over dp with the distributed optimizer
    activations what the microbatches in flight keep for their backwards
    work        tensors of the operation that runs at the peak, logits and recomputed activations among them
    buffers     the tensor that sequence parallelism gathers into
    links       buffers of the collective library, outside the allocator
    fragments   what the allocator reserves beyond what it hands out
    runtime     what driver and runtime hold back

Source:
    Static part: megatron-core 0.16.1, distributed/param_and_grad_buffer.py and optimizer/distrib_optimizer.py; with
    bf16 weights and fp32 gradients 18 bytes a parameter, 6 + 12/dp with the distributed optimizer. HCCL takes two
    buffers of HCCL_BUFFSIZE (200 MB by default) a communicator: HCCL documentation. Reserved over allocated, 1/0.94:
    SimuMax 4dcaae5.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ridgeline.core.frozen import frozen
from ridgeline.core.job import Job
from ridgeline.parallel.actions import Action
from ridgeline.parallel.collectives import Collective
from ridgeline.parallel.held import WIDTHS, Held
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.ops import Sizes, sizes_of
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.stages import StageMap
from ridgeline.parallel.work import StageWork, deferred_bytes, kept_bytes, recomputed_bytes

HCCL_BUFFER_BYTES = 2 * 200 * 2**20
ALLOCATED_OF_RESERVED = 0.94
BAND = (-0.02, 0.12)
"""How far the allocator's peak may lie from ``allocated_bytes``, as a share of it."""


@frozen(kw_only=True)
class RankMemory:
    """What one rank of a pipeline rank holds at its peak, in bytes.

    Attributes:
        in_flight: Forwards whose backward is still to come, at the peak.
        peak_at: The action during which the peak occurs, ``2B0``; ``update`` for the optimizer's step.
        capacity_bytes: Of the device.
    """

    pp_rank: int
    params_bytes: int
    grads_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    work_bytes: int
    buffers_bytes: int
    links_bytes: int
    fragments_bytes: int
    runtime_bytes: int
    in_flight: int
    peak_at: str
    capacity_bytes: int

    @property
    def static_bytes(self) -> int:
        """Held from the first step on, whatever runs."""
        return self.params_bytes + self.grads_bytes + self.optimizer_bytes

    @property
    def allocated_bytes(self) -> int:
        """Tensors at the peak: what ``max_memory_allocated`` counts."""
        return self.static_bytes + self.activations_bytes + self.work_bytes + self.buffers_bytes

    @property
    def total_bytes(self) -> int:
        """All that the device must hold."""
        return self.allocated_bytes + self.links_bytes + self.fragments_bytes + self.runtime_bytes

    @property
    def fits(self) -> bool:
        """Whether the device is large enough."""
        return self.total_bytes <= self.capacity_bytes


class _Peak(NamedTuple):
    held: int
    work: int
    in_flight: int
    at: str


class _Live(NamedTuple):
    """Bytes of one microbatch on a stage: kept for its backward, then for its weight gradients; and while it runs."""

    kept: int
    deferred: int
    forward_work: int
    backward_work: int

    def work(self, kind: str) -> int:
        """Beside what is held when an action begins, but for what it adds to it."""
        if kind == "F":
            return self.forward_work
        # Layer by layer, what weight gradients need takes the place of what was kept.
        return self.backward_work + (max(0, self.deferred - self.kept) if kind == "I" else 0)


def plan_memory(
    job: Job,
    *,
    mesh: Mesh,
    stages: StageMap,
    held: Sequence[Held],
    schedule: Schedule,
    work: Sequence[StageWork],
    collectives: Sequence[Collective],
) -> tuple[RankMemory, ...]:
    """The memory of each pipeline rank."""
    sizes = sizes_of(job)
    live = [_stage_live(job, one, sizes, last=stage == len(work) - 1) for stage, one in enumerate(work)]
    owned = [[held[stage] for stage in stages.owned_by(pp_rank)] for pp_rank in range(mesh.pp)]
    return tuple(
        _rank_memory(job, mesh, params, collectives, pp_rank, _peak(schedule, pp_rank, live))
        for pp_rank, params in enumerate(owned)
    )


def _rank_memory(
    job: Job, mesh: Mesh, held: Sequence[Held], collectives: Sequence[Collective], pp_rank: int, peak: _Peak
) -> RankMemory:
    sizes = sizes_of(job)
    owned = sum(params.elements for params in held)
    if job.memory.distributed_optimizer:
        over_dp = sum(params.dense_buffer + params.tied_buffer for params in held)
        owned = over_dp // (mesh.dp * mesh.cp) + sum(params.expert_buffer for params in held) // mesh.edp
    width, grad_width = WIDTHS[job.precision.params], WIDTHS[job.precision.grads]
    elements = sum(params.buffers for params in held)
    optimizer = owned * (12 if width < 4 else 8)
    # The update reads fp32 gradients: a copy where they are bf16. Adam's denominator is one more tensor a parameter.
    update = owned * 4 * (2 if grad_width < 4 else 1)
    activations, work, at, in_flight = peak.held, peak.work, peak.at, peak.in_flight
    if update > activations + work:
        activations, work, at, in_flight = 0, update, "update", 0
    buffers = sizes.tokens * sizes.hidden * sizes.width if sizes.sp and sizes.tp > 1 else 0
    chip = job.cluster.chip
    on_device = chip.device != "cpu"
    params_bytes, grads_bytes = elements * width, elements * grad_width
    allocated = params_bytes + grads_bytes + optimizer + activations + work + buffers
    groups = {row.axes for row in collectives if row.counts[pp_rank]}
    return RankMemory(
        pp_rank=pp_rank,
        params_bytes=params_bytes,
        grads_bytes=grads_bytes,
        optimizer_bytes=optimizer,
        activations_bytes=activations,
        work_bytes=work,
        buffers_bytes=buffers,
        links_bytes=len(groups) * HCCL_BUFFER_BYTES if chip.device == "npu" else 0,
        fragments_bytes=int(allocated / ALLOCATED_OF_RESERVED) - allocated if on_device else 0,
        runtime_bytes=chip.reserved_bytes,
        in_flight=in_flight,
        peak_at=at,
        capacity_bytes=chip.hbm_bytes,
    )


def _stage_keeps(job: Job, work: StageWork, sizes: Sizes, *, last: bool) -> int:
    """What one microbatch of a stage keeps from its forward to its backward."""
    stream = sizes.own_tokens * sizes.hidden * sizes.width
    kept = sum(kept_bytes(run, sizes) for run in work.runs)
    # On devices with streams a sent output gives its memory back; on cpu it is kept (deallocate_pipeline_outputs).
    return kept if last or job.cluster.chip.device != "cpu" else kept + stream


def _stage_live(job: Job, work: StageWork, sizes: Sizes, *, last: bool) -> _Live:
    kept, deferred = _stage_keeps(job, work, sizes, last=last), sum(deferred_bytes(run, sizes) for run in work.runs)
    return _Live(kept, deferred, *_stage_work(work, sizes))


def _stage_work(work: StageWork, sizes: Sizes) -> tuple[int, int]:
    """The largest tensors of a passing operation, in the forward and in the backward of a stage."""
    stream = sizes.own_tokens * sizes.hidden * sizes.width
    forward = max((op.forward_work_bytes for run in work.runs for op in run.ops), default=0)
    backward = max(
        (
            op.backward_work_bytes + 2 * stream + (recomputed_bytes(run, sizes) if run.recomputes(op) else 0)
            for run in work.runs
            for op in run.ops
        ),
        default=0,
    )
    return forward + stream, backward


def _peak(schedule: Schedule, pp_rank: int, live: Sequence[_Live]) -> _Peak:
    """The worst moment of a rank's schedule: held activations and the running operation's tensors together."""
    held = in_flight = best = 0
    peak = _Peak(0, 0, 0, "")
    for action in schedule.ranks[pp_rank]:
        stage, kind, _ = action
        if kind == "F":
            held += live[stage].kept
            in_flight += 1
        work = live[stage].work(kind)
        if held + work > best:
            best, peak = held + work, _Peak(held, work, in_flight, str(Action(*action)))
        if kind == "I":
            held += live[stage].deferred - live[stage].kept
        elif kind != "F":
            held -= live[stage].kept if kind == "B" else live[stage].deferred
            in_flight -= 1
    return peak
