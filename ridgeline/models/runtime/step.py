"""One training step and one evaluation step of a built rank."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import attrs
import torch

from ridgeline.core.model import Attention, Rope
from ridgeline.models.program import RankProgram
from ridgeline.models.runtime.build import Built
from ridgeline.models.runtime.modules import Sequences
from ridgeline.models.runtime.rope import RotaryTable, rotary_table
from ridgeline.parallel.lr import lr_at
from ridgeline.parallel.runtime.execute import run_schedule, share_sums
from ridgeline.parallel.runtime.optimizer import update


class Microbatch(Protocol):
    """What the model is given: tensors of (b, s) on any device.

    ``cu_seqlens``: where documents begin and the last one ends, counted over b*s tokens, int32, on the host. None when
    each sample is one document; then positions are 0 .. s-1 and ``position_ids`` is not read.
    """

    @property
    def tokens(self) -> torch.Tensor: ...
    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def loss_mask(self) -> torch.Tensor: ...
    @property
    def position_ids(self) -> torch.Tensor: ...
    @property
    def cu_seqlens(self) -> torch.Tensor | None: ...


@attrs.frozen(kw_only=True)
class StepResult:
    """What one step did, the same on every rank.

    Attributes:
        loss: Mean over the step, weighed as the objective says, before the update.
        grad_norm: Of all gradients, before clipping.
        lr: The rate of the update.
        tokens: Tokens with a loss, over all ranks.
        skipped: The gradients were not finite, and the weights stayed as they were.
    """

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    skipped: bool


@attrs.frozen
class MeanLoss:
    """The mean loss of a step, weighed as the objective says, and how many tokens had one, over all ranks."""

    loss: float
    tokens: int


def train_step(built: Built, microbatches: Iterable[Microbatch], *, step: int) -> StepResult:
    """Run a step's microbatches, reduce their gradients and update the weights.

    Args:
        built: This rank.
        microbatches: As many as the program says, of ``mbs`` samples.
        step: Updates made before this one, 0 for the first; it decides the learning rate.
    """
    adam, steps = built.program.job.optimizer, built.program.job.run.steps
    mean = accumulate(built, microbatches)
    lr = lr_at(step, adam, steps=steps)
    done = update(built.optimizer, lr=lr, weight_decay=adam.weight_decay, clip_grad=adam.clip_grad)
    return StepResult(loss=mean.loss, grad_norm=done.grad_norm, lr=lr, tokens=mean.tokens, skipped=done.skipped)


def accumulate(built: Built, microbatches: Iterable[Microbatch], *, whole: bool = False) -> MeanLoss:
    """The first half of a step: gradients of all microbatches, in ``main_grad`` of each parameter.

    Args:
        built: This rank.
        microbatches: As for `train_step`.
        whole: Leave every dp rank the whole gradient, even if the optimizer needs but a shard of it.
    """
    for chunk in built.chunks:
        chunk.zero_grad_buffer()
    built.optimizer.zero_grad()
    return _run(built, microbatches, whole=whole)


def eval_step(built: Built, microbatches: Iterable[Microbatch]) -> float:
    """The mean loss of a step's microbatches; nothing changes."""
    for chunk in built.chunks:
        chunk.eval()
    try:
        with torch.no_grad():
            return _run(built, microbatches, forward_only=True).loss
    finally:
        for chunk in built.chunks:
            chunk.train()


def run_chunk(
    built: Built, chunk: torch.nn.Module, batch: Microbatch, *, labels: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    """A microbatch through one chunk: hidden states, and of the last stage the losses (b, s), or logits without labels.

    Args:
        built: This rank.
        chunk: One of its chunks, as wrapped; its input, if it is not the first stage, has been set by the schedule.
        batch: The microbatch.
        labels: (b, s), read by the last stage only.
        options: Of GPTModel's forward.
    """
    part = built.program.chunks[built.chunks.index(chunk)]  # pyright: ignore[reportArgumentType]  one of them
    device, dtype = built.device, built.config.params_dtype
    return chunk(
        input_ids=batch.tokens.to(device, non_blocking=True) if part.pre_process else None,
        position_ids=None,
        attention_mask=None,
        labels=labels.to(device, non_blocking=True) if labels is not None and part.post_process else None,
        packed_seq_params=sequences_of(built.program, batch, device=device, dtype=dtype),
        **options,
    )


def sequences_of(program: RankProgram, batch: Microbatch, *, device: torch.device, dtype: torch.dtype) -> Sequences:
    """What attention needs of a microbatch, on the device."""
    mixers = {mixer for run in program.job.model.blocks if isinstance(mixer := run.block.mixer, Attention)}
    length = batch.tokens.shape[1]
    if batch.cu_seqlens is None:
        tables = {m.rope: _table_of_whole(m.rope, m.head_dim, length, dtype, device) for m in mixers}
        return Sequences(tables=tables)
    longest = int(batch.cu_seqlens.diff().max())
    positions = batch.position_ids.to(device, non_blocking=True)
    tables = {
        m.rope: rotary_table(m.rope, head_dim=m.head_dim, positions_bs=positions, length=longest, dtype=dtype)
        for m in mixers
    }
    return Sequences(tables=tables, cu_seqlens=batch.cu_seqlens)


@functools.lru_cache(maxsize=16)
def _table_of_whole(rope: Rope, head_dim: int, length: int, dtype: torch.dtype, device: torch.device) -> RotaryTable:
    """The table of samples that are one document each: the same for every microbatch."""
    positions = torch.arange(length, device=device).unsqueeze(0)
    return rotary_table(rope, head_dim=head_dim, positions_bs=positions, length=length, dtype=dtype)


def _run(
    built: Built, microbatches: Iterable[Microbatch], *, forward_only: bool = False, whole: bool = False
) -> MeanLoss:
    """Run the schedule, and tell every rank the loss."""
    data = built.program.data
    reports = run_schedule(
        built.chunks,
        functools.partial(_forward_step, built),
        microbatches=list(microbatches),
        seq_len=data.seq_len,
        mbs=data.mbs,
        forward_only=forward_only,
        whole_gradients=whole,
    )
    sums = torch.stack(reports).sum(0) if reports else torch.zeros(3, device=built.device)
    total, means, tokens = share_sums(sums).tolist()
    per_token = built.program.job.objective.per_token
    loss = total / max(tokens, 1.0) if per_token else means / (data.num_microbatches * data.dp)
    return MeanLoss(loss, round(tokens))


def _forward_step(built: Built, microbatches: Iterator[Microbatch], chunk: torch.nn.Module) -> tuple[torch.Tensor, Any]:
    """One microbatch through one chunk: its output, and how that becomes a loss if the chunk is the last stage."""
    batch = next(microbatches)
    return run_chunk(built, chunk, batch, labels=batch.labels), functools.partial(_loss, batch.loss_mask)


def _loss(loss_mask: torch.Tensor, losses_bs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum of a microbatch's losses, its tokens, and what is reported: sum, mean, tokens."""
    mask = loss_mask.to(losses_bs.device, torch.float32, non_blocking=True)
    total, tokens = (losses_bs.float() * mask).sum(), mask.sum()
    report = torch.stack((total.detach(), total.detach() / tokens.clamp(min=1), tokens))
    return total, tokens.to(torch.int), report
