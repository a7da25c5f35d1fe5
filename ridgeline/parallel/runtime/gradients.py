"""Gradients of a rank's chunks: added up over microbatches in buffers, and reduced over dp when they are complete."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import attrs
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from ridgeline.parallel.actions import Action

Chunks = Mapping[int, DistributedDataParallel]
"""This rank's chunks by their stage, in order."""


def wrap_chunks(
    chunks: Sequence[MegatronModule], config: TransformerConfig, ddp: DistributedDataParallelConfig
) -> list[DistributedDataParallel]:
    """Put each chunk's gradients in buffers that are reduced over dp."""
    return [
        DistributedDataParallel(config, ddp, chunk, disable_bucketing=index > 0) for index, chunk in enumerate(chunks)
    ]


@attrs.frozen(kw_only=True, eq=False)
class Completion:
    """When the gradients of each chunk are complete.

    Attributes:
        chunks: Of this rank.
        last: The last action of each stage that adds to its gradients.
        holding: While one is held, its chunk's gradients are added up and not reduced.
    """

    chunks: Chunks
    last: Mapping[int, Action]
    holding: Mapping[int, ExitStack]


def completion_of(chunks: Chunks, actions: Sequence[Action], *, whole: bool) -> Completion:
    """Hold back the reduction of every chunk that trains in these actions.

    Args:
        chunks: Of this rank.
        actions: In their order.
        whole: Reduce each gradient to every dp rank, even if the optimizer needs but a shard of it.
    """
    last = {action.stage: action for action in actions if action.kind in "BIW"}
    holding = {stage: ExitStack() for stage in last}
    for stage, stack in holding.items():
        chunks[stage].force_all_reduce = whole
        stack.enter_context(chunks[stage].no_sync())
    return Completion(chunks=chunks, last=last, holding=holding)


def before_action(completion: Completion, action: Action) -> None:
    """Let parameters be reduced as a chunk's last backward gets to them."""
    if action.kind == "B" and completion.last[action.stage] == action:
        completion.holding[action.stage].close()


def finish_gradients(completion: Completion, *, whole: bool) -> None:
    """Reduce what is not yet reduced: over dp, over tp under sp, and a tied embedding over both ends of the pipeline.

    Args:
        completion: Of a step whose actions have all run.
        whole: As for `completion_of`.
    """
    for stack in completion.holding.values():
        stack.close()
    finalize_model_grads(list(completion.chunks.values()), force_all_reduce=whole)


def share_sums(sums: torch.Tensor, *, last: int) -> torch.Tensor:
    """Add up over dp what the ranks of the last stage counted, and tell the ranks of all stages.

    Args:
        sums: Of this rank, read on those of the last stage.
        last: Their pipeline rank.
    """
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    assert isinstance(pipeline, torch.distributed.ProcessGroup)
    if pipeline.rank() == last:
        torch.distributed.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if pipeline.size() > 1:
        torch.distributed.broadcast(sums, group=pipeline, group_src=last)
    return sums
