"""The logits of a built model, whatever its layout: for evaluation and comparison."""

import functools
from collections.abc import Iterable, Iterator

import torch

from ridgeline.models.runtime.build import Built
from ridgeline.models.runtime.sequences import Microbatch
from ridgeline.models.runtime.step import run_chunk
from ridgeline.parallel.runtime.execute import run_schedule


@torch.no_grad()
def logits(built: Built, microbatches: Iterable[Microbatch]) -> list[torch.Tensor]:
    """The logits of each microbatch, (b, s, vocabulary) in fp32, on ranks with the last stage; nothing elsewhere."""
    for chunk in built.chunks:
        chunk.eval()
    try:
        outputs = run_schedule(
            built.chunks,
            functools.partial(_forward_step, built),
            microbatches=list(microbatches),
            seq_len=built.program.data.seq_len,
            mbs=built.program.data.mbs,
            forward_only=True,
        )
    finally:
        for chunk in built.chunks:
            chunk.train()
    return [output.float()[..., : built.program.job.model.vocab_size] for output in outputs]


def _forward_step(
    built: Built, microbatches: Iterator[Microbatch], chunk: torch.nn.Module
) -> tuple[torch.Tensor, None]:
    return run_chunk(built, chunk, next(microbatches), runtime_gather_output=True), None
