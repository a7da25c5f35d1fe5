"""What one stage does for one microbatch: its layers' operations, how often, and what of them it recomputes."""

from itertools import groupby
from typing import NamedTuple

from ridgeline.core.job import FullRecompute, Job, SelectiveRecompute
from ridgeline.core.model import Block
from ridgeline.parallel.ops import Op, Sizes, block_ops, deferred, embedding_ops, head_ops, kept, sizes_of
from ridgeline.parallel.stages import StageMap


class Run(NamedTuple):
    """Equal layers in a row.

    Attributes:
        ops: Of one layer, or of the embedding or the head.
        layers: How many; 1 for the embedding or the head.
        parts: Parts of each layer that are recomputed.
        group: Layers recomputed together from one saved input; 0 where layers are not recomputed as a whole.
    """

    ops: tuple[Op, ...]
    layers: int = 1
    parts: tuple[str, ...] = ()
    group: int = 0

    def recomputes(self, op: Op) -> bool:
        """Whether the backward runs this operation's forward again."""
        return self.group > 0 or op.part in self.parts


class StageWork(NamedTuple):
    """One stage: the embedding (on the first), its layers, the head and loss (on the last)."""

    before: tuple[Run, ...]
    layers: tuple[Run, ...]
    after: tuple[Run, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All of it, in the order of the forward."""
        return (*self.before, *self.layers, *self.after)


def stage_work(job: Job, stages: StageMap) -> tuple[StageWork, ...]:
    """The work of every stage, in model order."""
    sizes = sizes_of(job)
    blocks = job.model.layers()
    ops = {block: block_ops(block, sizes) for block in {run.block for run in job.model.blocks}}
    last = stages.num_stages - 1
    return tuple(
        StageWork(
            before=(Run(embedding_ops(sizes)),) if stage == 0 else (),
            layers=tuple(_layer_runs(job, [blocks[layer] for layer in layers], ops)),
            after=(Run(head_ops(sizes)),) if stage == last else (),
        )
        for stage, layers in enumerate(stages.layers)
    )


def kept_bytes(run: Run, sizes: Sizes) -> int:
    """What a run of layers keeps of one microbatch from its forward to its backward."""
    if run.group:
        return run.layers * sizes.own_tokens * sizes.hidden * sizes.width // run.group
    return run.layers * kept(run.ops, run.parts)


def recomputed_bytes(run: Run, sizes: Sizes) -> int:
    """What the backward of a run brings back at a time: a group's layers, or one layer's recomputed parts."""
    if run.group:
        return run.group * kept(run.ops, ()) - sizes.own_tokens * sizes.hidden * sizes.width
    return kept(run.ops, ()) - kept(run.ops, run.parts)


def deferred_bytes(run: Run, sizes: Sizes) -> int:
    """What a split backward of a run keeps of one microbatch until its weight gradients, recomputed or not."""
    return run.layers * deferred(run.ops, sizes.width)


def _layer_runs(job: Job, blocks: list[Block], ops: dict[Block, tuple[Op, ...]]) -> list[Run]:
    recompute = job.memory.recompute
    parts = recompute.modules if isinstance(recompute, SelectiveRecompute) else ()
    groups = [0] * len(blocks)
    if isinstance(recompute, FullRecompute) and recompute.method == "uniform":
        groups = [recompute.num_layers] * len(blocks)
    elif isinstance(recompute, FullRecompute):
        groups = [int(index < recompute.num_layers) for index in range(len(blocks))]
    runs = groupby(zip(blocks, groups, strict=True))
    return [Run(ops[block], sum(1 for _ in run), parts, group) for (block, group), run in runs]
