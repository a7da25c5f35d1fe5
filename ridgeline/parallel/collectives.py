"""Every collective of one step: its kind, its group, its bytes, and how often each pipeline rank runs it.

Sizes are of the whole tensor: what an all-gather gathers, a reduce-scatter or all-reduce reduces, what one rank sends
in an all-to-all (its own part included) or to its peer. Experts are taken to get equal shares of the tokens.

Source:
    megatron-core 0.16.1: distributed/finalize_model_grads.py, distributed/distributed_data_parallel.py (buckets),
    optimizer/distrib_optimizer.py, optimizer/clip_grads.py, pipeline_parallel/schedules.py; those within layers:
    ``ridgeline.parallel.ops``.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import ceil, prod
from typing import NamedTuple

from ridgeline.core.job import Job
from ridgeline.parallel.held import WIDTHS, Held, bucket_elements
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.ops import Sizes, sizes_of
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.stages import StageMap
from ridgeline.parallel.work import StageWork


class Collective(NamedTuple):
    """Equal collectives of one step.

    Attributes:
        kind: ``all_gather``, ``reduce_scatter``, ``all_reduce``, ``all_to_all``, ``broadcast`` or ``p2p``.
        axes: Of the mesh, which its group spans, as ``group_of`` takes them.
        group_size: Ranks that take part; two of ``pp`` for the tied embedding, which its first and last rank share.
        size_bytes: The whole tensor.
        counts: How often a rank of each pipeline rank runs it (of p2p: sends) in a step.
        phase: ``forward``, ``backward``, or ``step`` between the last backward and the next forward.
        why: What needs it.
    """

    kind: str
    axes: str
    group_size: int
    size_bytes: int
    counts: tuple[int, ...]
    phase: str
    why: str

    @property
    def joins_ends(self) -> bool:
        """Whether its group is the pipeline's first and last rank alone, which share an embedding."""
        return self.kind == "all_reduce" and self.axes == "pp"


class _Key(NamedTuple):
    phase: str
    why: str
    kind: str
    axes: str
    group_size: int
    size_bytes: int


def plan_collectives(
    job: Job,
    *,
    mesh: Mesh,
    stages: StageMap,
    held: Sequence[Held],
    work: Sequence[StageWork],
    schedule: Schedule,
) -> tuple[Collective, ...]:
    """Every collective of one step, in the order forward, backward, step."""
    counts: dict[_Key, list[int]] = {}
    again = _recomputes(job, schedule)
    for stage, (one, params) in enumerate(zip(work, held, strict=True)):
        for key, count in _stage_collectives(job, mesh, stages, one, params, stage, again[stage]):
            counts.setdefault(key, [0] * mesh.pp)[stages.owner(stage)] += count
    for pp_rank in range(mesh.pp):
        owned = [held[stage] for stage in stages.owned_by(pp_rank)]
        for key, count in _step_collectives(job, mesh, owned, has_head=pp_rank == stages.owner(stages.num_stages - 1)):
            counts.setdefault(key, [0] * mesh.pp)[pp_rank] += count
    order = ("forward", "backward", "step")
    rows = sorted(counts.items(), key=lambda item: order.index(item[0].phase))
    return tuple(
        Collective(key.kind, key.axes, key.group_size, key.size_bytes, tuple(per_rank), key.phase, key.why)
        for key, per_rank in rows
    )


def _recomputes(job: Job, schedule: Schedule) -> Sequence[int]:
    """How often a step recomputes what a stage recomputes."""
    if job.memory.recompute_when == "backward":
        return [job.num_slices] * schedule.num_stages
    ahead = Counter(action.stage for actions in schedule.ranks for action in actions if action.kind == "R")
    return [ahead[stage] for stage in range(schedule.num_stages)]


def group_size_of(axes: str, mesh: Mesh) -> int:
    """Ranks of a group over these axes.

    Example:
        >>> group_size_of("dp-cp", Mesh(dp=4, cp=2))
        8
    """
    return prod(getattr(mesh, axis) for axis in axes.split("-"))


def _stage_collectives(
    job: Job, mesh: Mesh, stages: StageMap, work: StageWork, params: Held, stage: int, recomputes: int
) -> Iterator[tuple[_Key, int]]:
    """Those of one stage: within its layers, to its neighbours, and of its gradients and weights."""
    microbatches = job.num_slices
    for run in work.runs:
        for op in run.ops:
            again = run.recomputes(op) or job.memory.recompute_when == "bubble"
            for comm in op.comms:
                size = group_size_of(comm.axes, mesh)
                key = _Key("forward", op.name, comm.kind, comm.axes, size, comm.size_bytes)
                times = microbatches * run.layers * comm.repeats
                if comm.phase == "B":
                    yield key._replace(phase="backward"), times
                    continue
                repeated = recomputes * run.layers * comm.repeats if again else 0
                if first := times - repeated * comm.in_graph:
                    yield key, first
                if repeated:
                    yield key._replace(phase="backward", why=f"{op.name} recomputed"), repeated
    if mesh.pp > 1:
        stream, owner = _stream_bytes(sizes_of(job)), stages.owner(stage)
        if stage + 1 < stages.num_stages and stages.owner(stage + 1) != owner:
            yield _Key("forward", "activations to the next stage", "p2p", "pp", 2, stream), microbatches
        if stage > 0 and stages.owner(stage - 1) != owner:
            yield _Key("backward", "gradients to the previous stage", "p2p", "pp", 2, stream), microbatches
    yield from gradient_collectives(job, mesh, params, stage)
    if params.tied:
        size_bytes = params.tied * WIDTHS[job.precision.grads]
        yield _Key("step", "gradient of the tied embedding", "all_reduce", "pp", 2, size_bytes), 1


def gradient_collectives(job: Job, mesh: Mesh, params: Held, stage: int) -> Iterator[tuple[_Key, int]]:
    """Those that reduce a stage's gradients and gather its weights, each with how often it runs."""
    grads, weights = WIDTHS[job.precision.grads], WIDTHS[job.precision.params]
    shared, comm = job.memory.distributed_optimizer, job.comm
    # Experts have an optimizer of their own, and each of the two gathers the weights of both.
    gathers = 2 if _has_experts(job) and not comm.overlap_param_gather else 1
    for name, elements, axes in (
        ("", params.dense_buffer, "dp-cp"),
        ("tied embedding's ", params.tied_buffer, "dp-cp"),
        ("expert ", params.expert_buffer, "edp"),
    ):
        size = group_size_of(axes, mesh)
        if size == 1 or not elements:
            continue
        buckets = ceil(elements / bucket_elements(size)) if comm.overlap_grad_reduce and stage == 0 else 1
        kind, phase = "reduce_scatter" if shared else "all_reduce", "backward" if comm.overlap_grad_reduce else "step"
        yield _Key(phase, f"{name}gradients", kind, axes, size, elements * grads // buckets), buckets
        if shared:
            phase = "forward" if comm.overlap_param_gather else "step"
            yield (
                _Key(phase, f"{name}weights", "all_gather", axes, size, elements * weights // buckets),
                buckets * gathers,
            )


def _has_experts(job: Job) -> bool:
    return bool(job.model.moes)


def _step_collectives(job: Job, mesh: Mesh, held: Sequence[Held], *, has_head: bool) -> Iterator[tuple[_Key, int]]:
    """Those of a rank over all its stages: gradients that tp ranks share, the gradients' norm and the loss."""
    if replicated := sum(one.replicated for one in held):
        size_bytes = replicated * WIDTHS[job.precision.grads]
        yield _Key("step", "gradients of weights that tp ranks share", "all_reduce", "tp", mesh.tp, size_bytes), 1
    experts = ["etp-ep-pp"] if _has_experts(job) else []
    norms = ["tp-cp-dp-pp"] if job.memory.distributed_optimizer else ["tp-pp", *experts]
    for axes in norms:
        if (size := group_size_of(axes, mesh)) > 1:
            yield _Key("step", "norm of the gradients", "all_reduce", axes, size, 4), 1
    if mesh.dp * mesh.cp > 1 and has_head:
        yield _Key("step", "loss and token counts", "all_reduce", "dp-cp", mesh.dp * mesh.cp, _report_bytes(job)), 1
    if (size := mesh.world_size) > 1 and (moes := job.model.moes):
        # Of each layer the tokens of every choice, how many found room, and the balance losses.
        counts = (job.model.num_layers + job.model.mtp) * (max(moe.experts + moe.zero_experts for moe in moes) + 2)
        yield _Key("step", "load of the experts", "all_reduce", "tp-cp-dp-pp", size, counts * 4), 1
    if mesh.world_size > 1 and job.objective.indexer_loss and job.model.indexers:
        size = mesh.world_size  # their sum, and of how many
        yield _Key("step", "loss of the indexers", "all_reduce", "tp-cp-dp-pp", size, 2 * 4), 1
    if mesh.pp > 1:
        yield _Key("step", "loss and token counts", "broadcast", "pp", mesh.pp, _report_bytes(job)), 1


def _report_bytes(job: Job) -> int:
    """What a step tells of its losses: of each depth the sum and the sum of microbatches' means, and the tokens."""
    depths = 1 + job.model.mtp
    return (2 * depths + 1) * 4


def _stream_bytes(sizes: Sizes) -> int:
    return sizes.own_tokens * sizes.hidden * sizes.width
