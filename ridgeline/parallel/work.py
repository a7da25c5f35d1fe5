"""What one stage does for one microbatch: its layers' operations, how often, and what of them it recomputes."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from ridgeline.core.job import FullRecompute, Job, SelectiveRecompute
from ridgeline.core.model import Block
from ridgeline.parallel.adapters import adapted
from ridgeline.parallel.ops import Op, Sizes, block_ops, deferred, embedding_ops, head_ops, kept, mtp_ops, sizes_of
from ridgeline.parallel.stages import StageMap

LATENT = (
    "linear_q_proj",
    "linear_q_down",
    "q_layernorm",
    "linear_q_up",
    "linear_kv_down",
    "kv_layernorm",
    "linear_kv_up",
)
SWAPPED = frozenset(("input_layernorm", "linear_qkv", *LATENT, "rope", "attention", "linear_proj", "pre_mlp_layernorm"))
"""Operations whose saved tensors go to the host under memory.swap_attention: MindSpeed's default swap-modules."""


class Run(NamedTuple):
    """Equal layers in a row.

    Attributes:
        ops: Of one layer, or of the embedding or the head.
        layers: How many; of the head one for each prediction of a token.
        parts: Parts of each layer that are recomputed.
        group: Layers recomputed together from one saved input; 0 where layers are not recomputed as a whole.
        swaps: Whether what attention saves waits on the host.
    """

    ops: tuple[Op, ...]
    layers: int = 1
    parts: tuple[str, ...] = ()
    group: int = 0
    swaps: bool = False

    def recomputes(self, op: Op) -> bool:
        """Whether the backward runs this operation's forward again: for its part, or a product's input it makes."""
        if self.group > 0 or op.part in self.parts:
            return True
        if not self.parts:
            return False
        after = self.ops[self.ops.index(op) + 1 :][:1]
        inputs = tuple(one._replace(saved=tuple(saved for saved in one.saved if saved.for_weight)) for one in after)
        return kept(inputs, self.parts) < kept(inputs, ())


class StageWork(NamedTuple):
    """One stage: the embedding (on the first), its layers, multi-token prediction, head and loss (on the last)."""

    before: tuple[Run, ...]
    layers: tuple[Run, ...]
    after: tuple[Run, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All of it, in the order of the forward."""
        return (*self.before, *self.layers, *self.after)


def stage_work(job: Job, stages: StageMap) -> tuple[StageWork, ...]:
    """The work of every stage, in model order."""
    sizes, adapter = sizes_of(job), job.adapter

    def trained(ops: tuple[Op, ...]) -> tuple[Op, ...]:
        return ops if adapter is None else tuple([adapted(op, adapter, sizes) for op in ops])

    ops = {block: trained(block_ops(block, sizes)) for block in {run.block for run in job.model.blocks}}
    last = stages.num_stages - 1
    after = tuple(
        run._replace(ops=trained(run.ops)) for run in (*_mtp_runs(job, sizes), Run(head_ops(sizes), 1 + job.model.mtp))
    )
    return tuple(
        StageWork(
            before=(Run(trained(embedding_ops(sizes))),) if stage == 0 else (),
            layers=layers,
            after=after if stage == last else (),
        )
        for stage, layers in enumerate(_stage_runs(job, stages, ops))
    )


def kept_bytes(run: Run, sizes: Sizes) -> int:
    """What a run of layers keeps of one microbatch from its forward to its backward."""
    if run.group:
        return run.layers * sizes.own_tokens * sizes.hidden * sizes.width // run.group
    return run.layers * (kept(run.ops, run.parts) - swapped_bytes(run))


def restored_bytes(run: Run, op: Op, sizes: Sizes) -> int:
    """What the backward of an operation finds beside what was kept: recomputed, or brought from the host.

    A group's layers, or one layer's recomputed parts; of swapped tensors a layer's, and those of the next.
    """
    if run.group:
        return run.group * kept(run.ops, ()) - sizes.own_tokens * sizes.hidden * sizes.width
    again = kept(run.ops, ()) - kept(run.ops, run.parts) if _needs_again(op, run.parts) else 0
    return again + min(2, run.layers) * swapped_bytes(run)


def _needs_again(op: Op, parts: tuple[str, ...]) -> bool:
    """Whether an operation's backward reads something that was recomputed."""
    return op.part in parts or kept((op,), parts) < kept((op,), ())


def swapped_bytes(run: Run) -> int:
    """What one layer of a run moves to the host after its forward, and back for its backward."""
    return kept(tuple(op for op in run.ops if op.name in SWAPPED), run.parts) if run.swaps else 0


def deferred_bytes(run: Run, sizes: Sizes) -> int:
    """What a split backward of a run keeps of one microbatch until its weight gradients, recomputed or not."""
    return run.layers * deferred(run.ops, sizes.width)


def _mtp_runs(job: Job, sizes: Sizes) -> Iterator[Run]:
    """Layers of multi-token prediction; Megatron-core recomputes them whole under the uniform method only."""
    if not job.model.mtp:
        return
    recompute = job.memory.recompute
    whole = isinstance(recompute, FullRecompute) and recompute.method == "uniform"
    parts = recompute.modules if isinstance(recompute, SelectiveRecompute) else ()
    yield Run(mtp_ops(job.model.block_ahead, sizes), job.model.mtp, parts, group=int(whole))


def _stage_runs(job: Job, stages: StageMap, ops: dict[Block, tuple[Op, ...]]) -> Iterator[tuple[Run, ...]]:
    """The runs of each stage's layers."""
    blocks, recompute = job.model.layers(), job.memory.recompute
    parts = () if recompute is None else recompute.modules
    for stage, layers in enumerate(stages.layers):
        count = len(layers)
        groups, recomputed = [0] * count, [parts] * count
        match recompute:
            case FullRecompute(method="uniform", num_layers=group):
                groups = [group] * count
            case FullRecompute():
                first = _first_layers(recompute, stages, stage)
                groups = [int(index < first) for index in range(count)]
            case SelectiveRecompute(num_layers=int(first)):
                recomputed = [parts if index < first else () for index in range(count)]
        rows = zip((blocks[layer] for layer in layers), groups, recomputed, strict=True)
        swaps = job.memory.swap_attention
        yield tuple(
            Run(ops[block], sum(1 for _ in run), () if group else of_layer, group, swaps and not group)
            for (block, group, of_layer), run in groupby(rows)
        )


def _first_layers(recompute: FullRecompute, stages: StageMap, stage: int) -> int:
    """How many layers of a stage are recomputed whole; a rank's are dealt to its stages in turn.

    Source:
        Ascend/MindSpeed-LLM 2.0.0, core/transformer/mlp.py, `should_recompute_activation`: the priority of a layer.
    """
    if recompute.stage_layers is not None:
        return recompute.stage_layers[stage]
    if recompute.per == "stage":
        return recompute.num_layers
    owned = stages.owned_by(stages.owner(stage))
    return max(0, -(-(recompute.num_layers - owned.index(stage)) // len(owned)))
