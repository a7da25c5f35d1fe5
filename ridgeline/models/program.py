"""One rank's program: all that its process builds and does, as plain data that can be printed, compared and sent."""

from collections.abc import Iterator

import attrs

from ridgeline.core.job import Job
from ridgeline.models.lowerable import check_lowerable
from ridgeline.models.megatron import Fields, ddp_fields, optimizer_fields, transformer_fields
from ridgeline.parallel.actions import Action
from ridgeline.parallel.context import Pieces, context_pieces
from ridgeline.parallel.mesh import PROCESS_GROUPS, ExpertCoords, RankCoords, expert_coords, group_of, rank_coords
from ridgeline.parallel.plan import Plan
from ridgeline.parallel.schedule import forward_only
from ridgeline.parallel.shards import Box, LocalParam, padded_vocab, rank_params, slices_of
from ridgeline.parallel.stages import StageMap
from ridgeline.parallel.traffic import Step, steps_of


@attrs.frozen(kw_only=True)
class Chunk:
    """One stage of the model, as one rank holds it.

    Attributes:
        stage: 0 .. pp*vpp-1, in model order.
        layers: Indices in the model of its layers, noops left out.
        pre_process: It holds the embedding.
        post_process: It holds the final norm and the head.
    """

    stage: int
    layers: tuple[int, ...]
    pre_process: bool
    post_process: bool


@attrs.frozen(kw_only=True)
class DataSlice:
    """Which samples of a step the rank reads, and which positions of them it computes.

    A step reads ``gbs`` samples after those already consumed; microbatch ``m`` of a dp rank starts at
    ``consumed + (m * dp + dp_rank) * mbs`` and holds ``mbs`` of them, as Megatron-LM's samplers do. cp ranks read the
    same samples, and of each compute the positions of ``pieces``; of all where that is empty.
    """

    dp_rank: int
    dp: int
    mbs: int
    num_microbatches: int
    seq_len: int
    pieces: Pieces = ()

    @property
    def cp(self) -> int:
        """Ranks that share each sample."""
        return self.seq_len // sum(end - begin for begin, end in self.pieces) if self.pieces else 1

    def samples(self, consumed: int) -> Iterator[range]:
        """The samples of each microbatch of the step that starts after ``consumed`` samples.

        Example:
            >>> slice = DataSlice(dp_rank=1, dp=2, mbs=2, num_microbatches=2, seq_len=8)
            >>> list(slice.samples(100))
            [range(102, 104), range(106, 108)]
        """
        for microbatch in range(self.num_microbatches):
            begin = consumed + (microbatch * self.dp + self.dp_rank) * self.mbs
            yield range(begin, begin + self.mbs)


@attrs.frozen(kw_only=True)
class Owned:
    """A parameter of this rank, and where it lies in the whole: the boxes that make it, one after the other."""

    local: LocalParam
    boxes: tuple[Box, ...]


@attrs.frozen(kw_only=True)
class RankProgram:
    """All that one rank builds and does.

    Attributes:
        job: What every rank agrees on.
        rank: Global rank, 0 .. world_size-1.
        coords, expert_coords: Where it sits.
        groups: The ranks of each of its process groups, by Megatron-core's name for the group.
        chunks: Its stages of the model, in the order of its chunks.
        padded_vocab: Rows of the embedding over all ranks.
        num_pads: Of its own rows of the vocabulary, the last ones that are padding.
        params: Every parameter it holds.
        kernels: The kernel chosen for each op.
        transformer, ddp, optimizer: Fields of Megatron-core's three configs.
        data: The samples it reads.
        owners: The pipeline rank of each stage of the model.
        steps: Its forwards and backwards of one step, in order, with what it sends and receives.
        evaluation: The same of a step that only tells the loss.
    """

    job: Job
    rank: int
    coords: RankCoords
    expert_coords: ExpertCoords
    groups: tuple[tuple[str, tuple[int, ...]], ...]
    chunks: tuple[Chunk, ...]
    padded_vocab: int
    num_pads: int
    params: tuple[Owned, ...]
    kernels: tuple[tuple[str, str], ...]
    transformer: Fields
    ddp: Fields
    optimizer: Fields
    data: DataSlice
    owners: tuple[int, ...]
    steps: tuple[Step, ...]
    evaluation: tuple[Step, ...]

    @property
    def actions(self) -> tuple[Action, ...]:
        """Its forwards and backwards of one step, in order."""
        return tuple(step.action for step in self.steps)

    def __str__(self) -> str:
        """A section for each field but the job."""
        return "\n".join(_lines(self))


def lower(plan: Plan, rank: int) -> RankProgram:
    """Lower a plan to what one rank builds and does.

    Args:
        plan: Of all ranks.
        rank: Global rank, 0 <= rank < world_size.

    Raises:
        LoweringError: The plan holds what this runtime cannot do; all of it is named.
        SpecError: No such rank.
    """
    job, mesh = plan.job, plan.mesh
    check_lowerable(job)
    coords = rank_coords(rank, mesh)
    vocab = padded_vocab(job.model.vocab_size, job.layout)
    local_vocab = vocab // mesh.tp
    return RankProgram(
        job=job,
        rank=rank,
        coords=coords,
        expert_coords=expert_coords(rank, mesh),
        groups=tuple((name, group_of(rank, mesh, axes)) for name, axes in PROCESS_GROUPS.items()),
        chunks=_chunks(plan.stages, coords.pp_rank),
        padded_vocab=vocab,
        num_pads=min(local_vocab, max(0, (coords.tp_rank + 1) * local_vocab - job.model.vocab_size)),
        params=tuple(Owned(local=p, boxes=slices_of(p.shard, rank, mesh)) for p in rank_params(plan, rank)),
        kernels=tuple((choice.op, choice.kernel) for choice in plan.kernels),
        transformer=transformer_fields(job, plan.stages),
        ddp=ddp_fields(job),
        optimizer=optimizer_fields(job),
        data=DataSlice(
            dp_rank=coords.dp_rank,
            dp=mesh.dp,
            mbs=job.batch.mbs,
            num_microbatches=job.num_microbatches,
            seq_len=job.batch.seq_len,
            pieces=context_pieces(job.layout, coords.cp_rank, seq_len=job.batch.seq_len) if mesh.cp > 1 else (),
        ),
        owners=tuple(map(plan.stages.owner, range(plan.stages.num_stages))),
        steps=steps_of(plan.schedule)[coords.pp_rank],
        evaluation=steps_of(forward_only(plan.schedule))[coords.pp_rank],
    )


def _chunks(stages: StageMap, pp_rank: int) -> tuple[Chunk, ...]:
    return tuple(
        Chunk(stage=s, layers=stages.layers[s], pre_process=s == 0, post_process=s == stages.num_stages - 1)
        for s in stages.owned_by(pp_rank)
    )


def _lines(program: RankProgram) -> Iterator[str]:
    yield f"rank {program.rank} of {program.job.cluster.world_size}"
    coords = attrs.asdict(program.coords) | attrs.asdict(program.expert_coords)
    yield f"  {' '.join(f'{name}={value}' for name, value in coords.items())}"
    yield "groups"
    yield from (f"  {name}: {' '.join(map(str, ranks))}" for name, ranks in program.groups)
    for index, chunk in enumerate(program.chunks):
        ends = ["embedding"] * chunk.pre_process, ["head"] * chunk.post_process
        yield f"chunk {index}: stage {chunk.stage}: {', '.join([*ends[0], *map(str, chunk.layers), *ends[1]])}"
        for local in (owned.local for owned in program.params if owned.local.chunk == index):
            yield f"  {local.name} {local.local_shape} of {local.fqn} {local.shard.global_shape}"
    for title in ("kernels", "transformer", "ddp", "optimizer"):
        yield title
        yield from (f"  {name}: {value}" for name, value in getattr(program, title))
    yield "data"
    yield from (f"  {name}: {value}" for name, value in attrs.asdict(program.data).items())
    yield f"actions: {' '.join(map(str, program.actions))}"
