"""The schedule carried out: forwards and backwards of all microbatches, through Megatron-core's executor."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import distributed

ForwardStep = Callable[[Iterator[Any], torch.nn.Module], tuple[torch.Tensor, Callable[[torch.Tensor], Any] | None]]
"""The next microbatch through a chunk: its output, and what makes that a loss; None reports the output itself."""


def wrap_chunks(
    chunks: Sequence[MegatronModule], config: TransformerConfig, ddp: DistributedDataParallelConfig
) -> list[DistributedDataParallel]:
    """Put each chunk's gradients in buffers that are reduced over dp, and tell the config when to reduce them."""
    wrapped = [
        DistributedDataParallel(config, ddp, chunk, disable_bucketing=index > 0) for index, chunk in enumerate(chunks)
    ]
    config.finalize_model_grads_func = finalize_model_grads
    if ddp.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in wrapped]
        config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]  # pyright: ignore[reportAttributeAccessIssue]
    return wrapped


def run_schedule(
    chunks: Sequence[torch.nn.Module],
    forward_step: ForwardStep,
    *,
    microbatches: Sequence[Any],
    seq_len: int,
    mbs: int,
    forward_only: bool = False,
    whole_gradients: bool = False,
) -> list[Any]:
    """Run every microbatch through every chunk of this rank, and its backward, in the order of the schedule.

    Args:
        chunks: Of this rank, in order.
        forward_step: Of one microbatch and one chunk.
        microbatches: Of this dp rank.
        seq_len: Tokens of a sample.
        mbs: Samples of a microbatch.
        forward_only: Leave the backwards out.
        whole_gradients: Reduce each gradient to every dp rank, even if the optimizer needs but a shard of it.

    Returns:
        What was reported of each microbatch, on ranks that hold the last stage; nothing elsewhere.
    """
    iterators = [iter(microbatches) for _ in chunks]
    several = len(chunks) > 1
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if several else iterators[0],
        model=list(chunks) if several else chunks[0],
        num_microbatches=len(microbatches),
        seq_length=seq_len,
        micro_batch_size=mbs,
        forward_only=forward_only,
        force_all_reduce=whole_gradients,
    )


def share_sums(sums: torch.Tensor) -> torch.Tensor:
    """Add up over dp what the ranks of the last stage counted, and tell the ranks of all stages."""
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    assert isinstance(pipeline, distributed.ProcessGroup)
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    if distributed.get_rank() == last:
        distributed.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if pipeline.size() > 1:
        distributed.broadcast(sums, src=last, group=pipeline)
    return sums
