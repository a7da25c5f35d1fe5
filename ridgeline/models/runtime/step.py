"""One training step and one evaluation step of a built rank."""

import functools
from collections.abc import Iterable
from typing import Any

import attrs
import torch
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

from ridgeline.models.program import Chunk
from ridgeline.models.runtime.build import Built
from ridgeline.models.runtime.context.slices import own_positions
from ridgeline.models.runtime.expert_load import ExpertLoad, forget_load, load_of_step, move_expert_biases
from ridgeline.models.runtime.indexer_report import forget_indexer_loss, indexer_loss_of_step
from ridgeline.models.runtime.sequences import Microbatch, Sequences, sequences_of
from ridgeline.parallel.lr import lr_at
from ridgeline.parallel.runtime.execute import run_schedule
from ridgeline.parallel.runtime.gradients import share_sums
from ridgeline.parallel.runtime.optimizer import update


@attrs.frozen(kw_only=True)
class StepResult:
    """What one step did, the same on every rank.

    Attributes:
        loss: Mean over the step, weighed as the objective says, before the update.
        grad_norm: Of all gradients, before clipping.
        lr: The rate of the update.
        tokens: Tokens with a loss, over all ranks.
        skipped: The gradients were not finite, and the weights stayed as they were.
        mtp_losses: Of each depth of multi-token prediction, unweighted, over as many tokens as ``loss``.
        load: Of the experts; None of a model without.
        indexer_loss: Of indexers that learn, unweighted, the mean over layers; None of a model without.
    """

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    skipped: bool
    mtp_losses: tuple[float, ...] = ()
    load: ExpertLoad | None = None
    indexer_loss: float | None = None


@attrs.frozen
class MeanLoss:
    """The mean loss of a step, weighed as the objective says, and how many tokens had one, over all ranks.

    ``mtp_losses``: those of further tokens, a mean for each depth.
    """

    loss: float
    tokens: int
    mtp_losses: tuple[float, ...] = ()


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
    load = load_of_step(built)
    if load is not None and not done.skipped and built.program.job.adapter is None:
        move_expert_biases(built, load)
    return StepResult(
        loss=mean.loss,
        grad_norm=done.grad_norm,
        lr=lr,
        tokens=mean.tokens,
        skipped=done.skipped,
        mtp_losses=mean.mtp_losses,
        load=load,
        indexer_loss=indexer_loss_of_step(built),
    )


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
    forget_load(built)
    forget_indexer_loss(built)
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

    With multi-token prediction a chunk that trains gives the losses of every depth, (1+mtp, b, s).

    Args:
        built: This rank.
        chunk: One of its chunks, as wrapped; its input, if it is not the first stage, has been set by the schedule.
        batch: The microbatch.
        labels: (b, s), read by the last stage only.
        options: Of GPTModel's forward.
    """
    part = part_of(built, chunk)
    device = built.device
    embeds = part.pre_process or (part.post_process and built.program.job.model.mtp > 0)
    return chunk(
        input_ids=_own(built, batch.tokens).to(device, non_blocking=True) if embeds else None,
        position_ids=_position_ids(built, batch) if part.pre_process else None,
        attention_mask=None,
        labels=_own(built, labels).to(device, non_blocking=True) if labels is not None and part.post_process else None,
        packed_seq_params=_sequences(built, batch),
        **options,
    )


def part_of(built: Built, chunk: torch.nn.Module) -> Chunk:
    """The part of the model that a chunk of this rank is."""
    return built.program.chunks[built.chunks.index(chunk)]  # pyright: ignore[reportArgumentType]  one of them


def _position_ids(built: Built, batch: Microbatch) -> torch.Tensor | None:
    """What a table of learned positions is read with, (b, s)."""
    if not built.program.job.model.learned_positions:
        return None
    if batch.cu_seqlens is None:
        return _own(built, torch.arange(batch.tokens.shape[1], device=built.device).expand(batch.tokens.shape))
    return _own(built, batch.position_ids).to(built.device, non_blocking=True)


def _own(built: Built, x_bs: torch.Tensor) -> torch.Tensor:
    return own_positions(x_bs, built.program.data.pieces)


def _sequences(built: Built, batch: Microbatch) -> Sequences:
    if batch.cu_seqlens is None and batch.tokens.shape[1] == built.program.data.seq_len:
        return Sequences(tables=built.tables)
    options = {"device": built.device, "dtype": built.config.params_dtype}
    return sequences_of(built.program.job.model, batch, pieces=built.program.data.pieces, **options)


def _run(
    built: Built, microbatches: Iterable[Microbatch], *, forward_only: bool = False, whole: bool = False
) -> MeanLoss:
    """Run the schedule, and tell every rank the loss."""
    data, batches = built.program.data, list(microbatches)
    # With more or fewer, ranks would wait for each other for ever.
    assert len(batches) == data.num_microbatches, f"{len(batches)} microbatches, not {data.num_microbatches}"
    _weigh_aside(built)
    reports = run_schedule(
        built.by_stage,
        functools.partial(_forward_step, built),
        steps=built.program.evaluation if forward_only else built.program.steps,
        owners=built.program.owners,
        microbatches=batches,
        seq_len=data.seq_len,
        mbs=data.mbs,
        device=built.device,
        whole_gradients=whole,
    )
    depths = 1 if forward_only else 1 + built.program.job.model.mtp
    sums = torch.stack(reports).sum(0) if reports else torch.zeros(2 * depths + 1, device=built.device)
    *sums, tokens = share_sums(sums, last=built.program.owners[-1]).tolist()
    totals, means = sums[:depths], sums[depths:]
    if built.program.job.objective.per_token:
        if not forward_only and tokens:
            for chunk in built.chunks:
                chunk.scale_gradients(1.0 / tokens)
        loss, *further = (total / max(tokens, 1.0) for total in totals)
    else:
        loss, *further = (mean / (data.num_microbatches * data.dp) for mean in means)
    return MeanLoss(loss, round(tokens), tuple(further))


def _forward_step(built: Built, chunk: torch.nn.Module, batch: Microbatch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One microbatch through one chunk: its output, or of the last stage the loss to go back from, and a report."""
    output = run_chunk(built, chunk, batch, labels=batch.labels)
    return _loss(built, batch.loss_mask, output) if part_of(built, chunk).post_process else (output, None)


def _weigh_aside(built: Built) -> None:
    """Weigh what layers add to the loss as a microbatch's loss is."""
    data = built.program.data
    weight = 1.0 if built.config.calculate_per_token_loss else data.cp / data.num_microbatches
    MoEAuxLossAutoScaler.set_loss_scale(torch.full((1,), weight, device=built.device))


def _loss(built: Built, loss_mask: torch.Tensor, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A microbatch's losses, (b, s) or of every depth (d, b, s), as one number to go back from; and a report.

    That holds the sum and the mean of each depth, and the tokens. Further depths count together as much as the
    objective says, each over the tokens of the first, as in DeepSeek-V3 (arXiv 2412.19437, equation 24); a token's mask
    goes with its label. A loss per token is divided by the step's tokens in the end, with the gradients.

    Losses and tokens are those of this cp rank's positions, means are over the tokens of all. Megatron-core divides the
    sum of gradients over dp and cp by the number of both, where a loss is no sum.
    """
    objective = built.program.job.objective
    mask_bs = loss_mask.to(losses.device, torch.float32, non_blocking=True)
    by_depth = losses.float().reshape(-1, *losses.shape[-2:])
    masks = [_own(built, mask_bs.roll(-depth, dims=1)) for depth in range(len(by_depth))]
    sums = torch.stack([(loss * mask).sum() for loss, mask in zip(by_depth, masks, strict=True)])
    all_tokens = mask_bs.sum().clamp(min=1)
    report = torch.cat((sums.detach(), sums.detach() / all_tokens, masks[0].sum().unsqueeze(0)))
    total = sums[0] + objective.mtp_loss * sums[1:].sum() / max(1, len(sums) - 1)
    if not objective.per_token:
        total = total / all_tokens / built.program.data.num_microbatches * built.program.data.cp
    return total, report
