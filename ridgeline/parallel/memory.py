"""Memory of every pipeline rank: what is held all the time, what the schedule keeps in flight, and the peak of both.

All ranks of one pipeline rank hold the same. ``allocated_bytes`` is what tensors are expected to take, and runs lie on
both sides of it. What decides whether a job fits errs high: it adds an allowance for what the estimate may have missed.
The first step differs from later ones: Adam's moments appear only in its update, so its forward and backward run
beside less.

    params      weights, in the dtype they compute in; frozen ones and those of a reference model among them
    grads       the accumulation buffer
    optimizer   masters and moments, over dp with the distributed optimizer
    activations what the microbatches in flight keep for their backwards
    work        tensors of the operation that runs at the peak, logits and recomputed activations among them
    buffers     the tensor that sequence parallelism gathers into, those that stages exchange, biases of positions
    allowance   a share of activations, work and buffers, for tensors that no operation here tells of
    links       buffers of the collective library, outside the allocator
    fragments   what the allocator reserves beyond what it hands out
    runtime     what driver and runtime hold back

Source:
    States: see states.py. HCCL takes two buffers of HCCL_BUFFSIZE (200 MB by default) a communicator: HCCL
    documentation. Reserved over allocated, 1/0.94: SimuMax 4dcaae5.
"""

from collections.abc import Sequence

from ridgeline.core.frozen import frozen
from ridgeline.core.job import Job
from ridgeline.core.model import Attention
from ridgeline.parallel.activations import Moment, peak_moment, stage_live
from ridgeline.parallel.collectives import Collective
from ridgeline.parallel.held import Held
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.ops import Sizes, sizes_of
from ridgeline.parallel.ops.attention import alibi_bytes
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.stages import StageMap
from ridgeline.parallel.states import states_of
from ridgeline.parallel.work import StageWork

HCCL_BUFFER_BYTES = 2 * 200 * 2**20
ALLOCATED_OF_RESERVED = 0.94
BAND = (-0.10, 0.12)
"""Where the allocator's peak lies from ``allocated_bytes``, as a share of it, in nine of ten published runs."""
ALLOWANCE = 0.10
"""Of what is not held all the time: with fragments, published runs lie below the sum but for those docs/accuracy.md
admits."""


@frozen(kw_only=True)
class RankMemory:
    """What one rank of a pipeline rank holds at its peak, in bytes.

    Attributes:
        in_flight: Forwards whose backward is still to come, at the peak.
        peak_at: The action during which the peak occurs, ``2B0``; ``update`` for the optimizer's step.
        first_step_bytes, first_step_at: Tensors at the peak of the first step, and when: Adam's moments come with its
            update.
        first_step_most_bytes: The former with allowance and fragments.
        after_step_bytes: Tensors right after an update.
        capacity_bytes: Of the device.
    """

    pp_rank: int
    params_bytes: int
    grads_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    work_bytes: int
    buffers_bytes: int
    allowance_bytes: int
    links_bytes: int
    fragments_bytes: int
    runtime_bytes: int
    in_flight: int
    peak_at: str
    first_step_bytes: int
    first_step_at: str
    first_step_most_bytes: int
    after_step_bytes: int
    capacity_bytes: int

    @property
    def static_bytes(self) -> int:
        """Held from the first update on, whatever runs."""
        return self.params_bytes + self.grads_bytes + self.optimizer_bytes

    @property
    def allocated_bytes(self) -> int:
        """Tensors at the peak: what ``max_memory_allocated`` counts."""
        return self.static_bytes + self.activations_bytes + self.work_bytes + self.buffers_bytes

    @property
    def total_bytes(self) -> int:
        """All that the device must hold."""
        tensors = self.allocated_bytes + self.allowance_bytes + self.fragments_bytes
        return tensors + self.links_bytes + self.runtime_bytes

    @property
    def fits(self) -> bool:
        """Whether the device is large enough."""
        return self.total_bytes <= self.capacity_bytes


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
    each = stage_live(job, work)
    owned = [[held[stage] for stage in stages.owned_by(pp_rank)] for pp_rank in range(mesh.pp)]
    peaks = [
        peak_moment(actions, each, pairs=schedule.pairs_of(pp_rank)) for pp_rank, actions in enumerate(schedule.ranks)
    ]
    return tuple(
        _rank_memory(job, mesh, params, collectives, pp_rank, peak)
        for pp_rank, (params, peak) in enumerate(zip(owned, peaks, strict=True))
    )


def buffer_bytes(job: Job, pp_rank: int) -> int:
    """The tensor that sequence parallelism gathers into, and those that stages exchange."""
    sizes = sizes_of(job)
    gathered = sizes.tokens * sizes.hidden * sizes.width if sizes.sp and sizes.tp > 1 else 0
    exchanged = _exchanged(job, pp_rank) * sizes.own_tokens * sizes.hidden * sizes.width
    return gathered + exchanged + _alibi_bytes(job, sizes)


def _alibi_bytes(job: Job, sizes: Sizes) -> int:
    """Linear biases that all layers share: those of a sample's heads twice, and of every sample with the mask in them.

    Source:
        Ascend/MindSpeed-LLM 2.0.0, tasks/models/common/alibi.py, ``Alibi``: ``alibi``, ``alibi_tensor``, ``alibi_pse``.
    """
    if "alibi" not in sizes.plain:
        return 0
    mixers = (block.mixer for block in job.model.kinds)
    each = max((alibi_bytes(mixer, sizes) for mixer in mixers if isinstance(mixer, Attention)), default=0)
    return each + 2 * each // job.batch.mbs


def _exchanged(job: Job, pp_rank: int) -> int:
    """Tensors between stages that stay when a step is over, in a cycle of references until Python collects it.

    Source:
        megatron-core, pipeline_parallel/schedules.py: the nested functions of the interleaved schedule. Counted in
        MindSpeed-LLM's runs: 2 on every rank but the first, interleaved 6 on the first and 8 on the others.
    """
    if job.layout.pp == 1:
        return 0
    interleaved = job.layout.vpp > 1
    return (8 if interleaved else 2) if pp_rank else (6 if interleaved else 0)


def _rank_memory(
    job: Job, mesh: Mesh, held: Sequence[Held], collectives: Sequence[Collective], pp_rank: int, peak: Moment
) -> RankMemory:
    states = states_of(job, mesh=mesh, held=held)
    chip = job.cluster.chip
    buffers = buffer_bytes(job, pp_rank)
    base = states.params + states.grads + states.masters + buffers
    running, updating = peak.held + peak.work, states.moments + states.main_grads + states.update
    activations, work, at, in_flight = peak.held, peak.work, str(peak.action), peak.in_flight
    if states.main_grads + states.update > running:
        activations, work, at, in_flight = 0, states.main_grads + states.update, "update", 0
    allocated, first = base + states.moments + activations + work, base + max(running, updating)
    missed = int(ALLOWANCE * (running + buffers)) if chip.device != "cpu" else 0
    first_missed = max(0, base + running + missed - first)
    groups = {row.axes for row in collectives if row.counts[pp_rank]}
    return RankMemory(
        pp_rank=pp_rank,
        params_bytes=states.params,
        grads_bytes=states.grads,
        optimizer_bytes=states.optimizer,
        activations_bytes=activations,
        work_bytes=work,
        buffers_bytes=buffers,
        allowance_bytes=max(0, base + states.moments + running + missed - allocated),
        links_bytes=len(groups) * HCCL_BUFFER_BYTES if chip.device == "npu" else 0,
        fragments_bytes=_fragments_bytes(allocated, job),
        runtime_bytes=chip.reserved_bytes,
        in_flight=in_flight,
        peak_at=at,
        first_step_bytes=first,
        first_step_at=str(peak.action) if running > updating else "update",
        first_step_most_bytes=first + first_missed + _fragments_bytes(first, job),
        after_step_bytes=base + states.moments + states.main_grads,
        capacity_bytes=chip.hbm_bytes,
    )


def _fragments_bytes(allocated: int, job: Job) -> int:
    return int(allocated / ALLOCATED_OF_RESERVED) - allocated if job.cluster.chip.device != "cpu" else 0
