"""The logits of a built model, whatever its layout: for evaluation and comparison."""

import functools
from collections.abc import Iterable

import torch

from ridgeline.models.runtime.build import Built
from ridgeline.models.runtime.sequences import Microbatch
from ridgeline.models.runtime.step import part_of, run_chunk
from ridgeline.parallel.runtime.execute import run_schedule


@torch.no_grad()
def logits(built: Built, microbatches: Iterable[Microbatch]) -> list[torch.Tensor]:
    """Of each microbatch of a step, (b, s, vocabulary) in fp32, on ranks with the last stage; nothing elsewhere."""
    for chunk in built.chunks:
        chunk.eval()
    try:
        outputs = run_schedule(
            built.by_stage,
            functools.partial(_forward_step, built),
            steps=built.program.evaluation,
            owners=built.program.owners,
            microbatches=list(microbatches),
            seq_len=built.program.data.seq_len,
            mbs=built.program.data.mbs,
            device=built.device,
        )
    finally:
        for chunk in built.chunks:
            chunk.train()
    return [output.float()[..., : built.program.job.model.vocab_size] for output in outputs]


def _forward_step(built: Built, chunk: torch.nn.Module, batch: Microbatch) -> tuple[torch.Tensor, torch.Tensor | None]:
    output = run_chunk(built, chunk, batch, runtime_gather_output=True)
    return output, output if part_of(built, chunk).post_process else None
