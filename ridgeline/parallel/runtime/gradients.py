"""Gradients of a rank's chunks: added up over microbatches in buffers, and reduced over dp when they are complete."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import attrs
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from ridgeline.parallel.actions import Action
from ridgeline.parallel.runtime.deferred import Deferred


class ParallelChunk(DistributedDataParallel):
    """A chunk whose gradients are gathered in buffers that are reduced over dp, at once or from products that wait."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deferred = Deferred(self._add)

    def _add(self, param: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        param.grad = gradient
        self._make_backward_post_hook(param)()

    def _make_backward_post_hook(self, param: torch.nn.Parameter) -> Callable[..., None]:
        """Upstream's, which takes a backward's gradient into the buffer, where there is one: a product may wait."""
        take = super()._make_backward_post_hook(param)
        return lambda *_: take() if param.grad is not None else None


Chunks: TypeAlias = Mapping[int, ParallelChunk]
"""This rank's chunks by their stage, in order."""


def wrap_chunks(
    chunks: Sequence[MegatronModule], config: TransformerConfig, ddp: DistributedDataParallelConfig
) -> list[ParallelChunk]:
    """Give each chunk its buffers of gradients."""
    return [ParallelChunk(config, ddp, chunk, disable_bucketing=index > 0) for index, chunk in enumerate(chunks)]


@attrs.frozen(kw_only=True, eq=False)
class Completion:
    """When the gradients of each chunk are complete.

    Attributes:
        chunks: Of this rank.
        last: The last action of each stage that adds to its gradients.
        holding: While one is held, its chunk's gradients are added up and not reduced.
        whole: Reduce each gradient to every dp rank, even if the optimizer needs but a shard of it.
    """

    chunks: Chunks
    last: Mapping[int, Action]
    holding: Mapping[int, ExitStack]
    whole: bool


def completion_of(chunks: Chunks, actions: Sequence[Action], *, whole: bool) -> Completion:
    """Hold back the reduction of every chunk that trains in these actions.

    Args:
        chunks: Of this rank.
        actions: In their order.
        whole: As in `Completion`.
    """
    last = {action.stage: action for action in actions if action.kind in "BIW"}
    holding = {stage: ExitStack() for stage in last}
    for stage, stack in holding.items():
        chunks[stage].force_all_reduce = whole
        stack.enter_context(chunks[stage].no_sync())
    return Completion(chunks=chunks, last=last, holding=holding, whole=whole)


def before_action(completion: Completion, action: Action) -> None:
    """Let parameters be reduced as a chunk's last backward gets to them."""
    if action.kind == "B" and completion.last[action.stage] == action:
        completion.holding[action.stage].close()


def after_action(completion: Completion, action: Action) -> None:
    """Begin to reduce a chunk whose last gradients are products that waited."""
    chunk = completion.chunks[action.stage]
    if action.kind == "W" and completion.last[action.stage] == action:
        completion.holding[action.stage].close()
        if chunk.ddp_config.overlap_grad_reduce:
            for group in chunk.bucket_groups + chunk.expert_parallel_bucket_groups:
                group.start_grad_sync(force_all_reduce=completion.whole)


def finish_gradients(completion: Completion) -> None:
    """Reduce what is not yet reduced: over dp, over tp under sp, and a tied embedding over both ends of the model."""
    finalize_model_grads(list(completion.chunks.values()), force_all_reduce=completion.whole)


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
