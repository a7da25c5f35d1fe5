"""What ranks run for the comparisons of this folder."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import distributed

from ridgeline.checkpoint.io.initial import load_initial
from ridgeline.core.job import Job
from ridgeline.kernels.device import open_device
from ridgeline.models.program import lower
from ridgeline.models.runtime.build import Built, build
from ridgeline.models.runtime.logits import logits
from ridgeline.models.runtime.model import named_tensors
from ridgeline.models.runtime.step import accumulate, eval_step, run_chunk, train_step
from ridgeline.parallel.plan import plan
from ridgeline.parallel.runtime.optimizer import update

Lengths = tuple[tuple[int, ...], ...]
"""Of the documents of each sample."""


@attrs.frozen(kw_only=True)
class Tokens:
    """A microbatch as the model takes it."""

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor | None = None


@attrs.frozen
class Piece:
    """A rank's part of the gradient of a parameter: the boxes of the whole that it holds, one after the other.

    ``shape`` is the whole's without padding, ``global_shape`` with it.
    """

    fqn: str
    shape: tuple[int, ...]
    boxes: tuple[tuple[tuple[int, int], ...], ...]
    global_shape: tuple[int, ...]
    values: Any


@attrs.frozen
class Trained:
    """A few steps of a rank: loss and gradient norm of each, and its part of the first step's gradients."""

    losses: list[float]
    grad_norms: list[float]
    tokens: list[int]
    gradients: list[Piece]


def train(job: Job, steps: int = 5) -> Trained:
    """Train from the initial weights, on the device of the job's cluster."""
    with build(lower(plan(job), distributed.get_rank()), open_device(job.cluster.chip.device)) as built:
        accumulate(built, microbatches(built, 0), whole=True)
        gradients = list(pieces(built))
        done = [train_step(built, microbatches(built, step), step=step) for step in range(steps)]
    return Trained([d.loss for d in done], [d.grad_norm for d in done], [d.tokens for d in done], gradients)


def pieces(built: Built) -> Iterator[Piece]:
    """This rank's part of every gradient."""
    for owned, tensor in named_tensors(built.program, built.chunks):
        if not owned.local.param.trains:
            continue
        values = tensor.main_grad.detach().float().cpu().numpy().copy()
        local = owned.local
        yield Piece(local.fqn, local.param.shape, owned.boxes, local.shard.global_shape, values)


def microbatches(built: Built, step: int) -> list[Tokens]:
    """What this rank reads in a step: random tokens, a fifth of them without a loss."""
    data, vocab = built.program.data, built.program.job.model.vocab_size
    gbs = data.mbs * data.dp * data.num_microbatches
    generator = torch.Generator().manual_seed(step)
    text = torch.randint(0, vocab, (gbs, data.seq_len + 1), generator=generator)
    mask = (torch.rand(gbs, data.seq_len, generator=generator) > 0.2).float()
    positions = torch.arange(data.seq_len).expand(data.mbs, -1)
    return [
        Tokens(tokens=text[rows, :-1], labels=text[rows, 1:], loss_mask=mask[rows], position_ids=positions)
        for rows in map(list, data.samples(0))
    ]


@attrs.frozen
class Computed:
    """What a rank makes of given tokens: the loss, logits where it holds the last stage, its part of the gradients."""

    loss: float
    logits: list[Any]
    gradients: list[Piece]


def compute(job: Job, text: Any) -> Computed:
    """Load the job's first weights; one microbatch forward and backward."""
    text = torch.from_numpy(text)
    positions = torch.arange(text.shape[1] - 1).expand(text.shape[0], -1)
    batch = Tokens(
        tokens=text[:, :-1],
        labels=text[:, 1:],
        loss_mask=torch.ones(text.shape[0], text.shape[1] - 1),
        position_ids=positions,
    )
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        load_initial(built)
        outputs = [output.numpy() for output in logits(built, [batch])]
        mean = accumulate(built, [batch])
        return Computed(mean.loss, outputs, list(pieces(built)))


def logits_of(job: Job, text: Any) -> list[Any]:
    """Load the job's first weights; the logits of given tokens, (b, s), where this rank holds the last stage."""
    tokens = torch.from_numpy(text)
    batch = Tokens(
        tokens=tokens,
        labels=tokens,
        loss_mask=torch.ones(tokens.shape),
        position_ids=torch.arange(tokens.shape[1]).expand(tokens.shape),
    )
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        load_initial(built)
        return [output.numpy() for output in logits(built, [batch])]


def forwards_of_a_step(job: Job) -> dict[str, int]:
    """How often the modules of each class run forward in a training step."""
    counts: Counter[str] = Counter()
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        for module in (module for chunk in built.chunks for module in chunk.modules()):
            module.register_forward_hook(lambda module, args, output: counts.update([type(module).__name__]))
        train_step(built, microbatches(built, 0), step=0)
    return dict(counts)


def mean_losses(job: Job) -> dict[str, float]:
    """The two means of the first step's losses, from the losses of all tokens."""
    with build(lower(plan(job), 0), open_device("cpu")) as built, torch.no_grad():
        batches = microbatches(built, 0)
        losses = [run_chunk(built, built.chunks[0], batch, labels=batch.labels) * batch.loss_mask for batch in batches]
    tokens = [batch.loss_mask.sum() for batch in batches]
    means = [loss.sum() / count for loss, count in zip(losses, tokens, strict=True)]
    total = sum(loss.sum() for loss in losses) / sum(tokens)
    return {"per token": float(total), "per microbatch": float(sum(means) / len(means))}


def documents(lengths: Lengths, vocab: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and labels of documents of these lengths, all random."""
    generator = torch.Generator().manual_seed(17)
    flat = [length for sample in lengths for length in sample]
    return [tuple(torch.randint(0, vocab, (2, length), generator=generator)) for length in flat]  # pyright: ignore


def packed(job: Job, lengths: Lengths) -> Computed:
    """Samples of several documents each, as one microbatch."""
    texts = documents(lengths, job.model.vocab_size)
    tokens, labels = (torch.cat(parts).reshape(len(lengths), -1) for parts in zip(*texts, strict=True))
    positions = torch.cat([torch.arange(len(text)) for text, _ in texts]).reshape(tokens.shape)
    ends = torch.tensor([0, *(len(text) for text, _ in texts)]).cumsum(0).int()
    mask = torch.ones(tokens.shape)
    batch = Tokens(tokens=tokens, labels=labels, loss_mask=mask, position_ids=positions, cu_seqlens=ends)
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        outputs = [output.numpy() for output in logits(built, [batch])]
        mean = accumulate(built, [batch])
        return Computed(mean.loss, outputs, list(pieces(built)))


def apart(job: Job, lengths: Lengths) -> Computed:
    """The same documents, each a sample of its own length; the logits are a document's, (s, vocabulary)."""
    texts = documents(lengths, job.model.vocab_size)
    outputs, total = [], 0.0
    with build(lower(plan(job), 0), open_device("cpu")) as built:
        for tokens, labels in texts:
            whole = {"loss_mask": torch.ones(1, len(tokens)), "position_ids": torch.arange(len(tokens)).unsqueeze(0)}
            batch = Tokens(tokens=tokens.unsqueeze(0), labels=labels.unsqueeze(0), **whole)
            with torch.no_grad():
                outputs.append(run_chunk(built, built.chunks[0], batch)[0, :, : job.model.vocab_size].numpy())
            loss = run_chunk(built, built.chunks[0], batch, labels=batch.labels).sum() / sum(map(sum, lengths))
            loss.backward()
            total += loss.item()
        return Computed(total, outputs, list(pieces(built)))


def train_on_one_batch(job: Job, steps: int) -> Trained:
    """Train on the first step's microbatches again and again."""
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        done = [train_step(built, microbatches(built, 0), step=step) for step in range(steps)]
    return Trained([d.loss for d in done], [d.grad_norm for d in done], [d.tokens for d in done], [])


def skipped(job: Job) -> dict[str, Any]:
    """Three steps, the second with a weight of the first rank that makes its losses infinite."""
    outcome: dict[str, Any] = {"skipped": [], "grad_norm": [], "changed": []}
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        for step in range(3):
            norm = next(t for owned, t in named_tensors(built.program, built.chunks) if "final" in owned.local.fqn)
            kept = norm.detach()[0].clone()
            if step == 1 and built.program.rank == 0:
                norm.data[0] = torch.inf
            before = weights(built)
            done = train_step(built, microbatches(built, step), step=step)
            outcome["skipped"].append(done.skipped)
            outcome["grad_norm"].append(done.grad_norm)
            outcome["changed"].append(any(not torch.equal(a, b) for a, b in zip(before, weights(built), strict=True)))
            if step == 1:
                norm.data[0] = kept
    return outcome


def decayed(job: Job) -> list[tuple[str, float]]:
    """Of each parameter its role, and what an update without gradients leaves of its norm."""
    with build(lower(plan(job), 0), open_device("cpu")) as built:
        tensors = [(owned.local.param.role, tensor) for owned, tensor in named_tensors(built.program, built.chunks)]
        for _, tensor in tensors:
            tensor.data.fill_(1.0)
        before = weights(built)
        for chunk in built.chunks:
            chunk.zero_grad_buffer()
        update(built.optimizer, lr=job.optimizer.lr, weight_decay=job.optimizer.weight_decay, clip_grad=0.0)
        ratios = [after.norm() / first.norm() for first, after in zip(before, weights(built), strict=True)]
        return [(role, float(ratio)) for (role, _), ratio in zip(tensors, ratios, strict=True)]


def evaluated(job: Job) -> dict[str, Any]:
    """An evaluation of the first step's microbatches, then their training step."""
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        before = weights(built)
        loss = eval_step(built, microbatches(built, 0))
        unchanged = all(torch.equal(a, b) for a, b in zip(before, weights(built), strict=True))
        training = all(module.training for chunk in built.chunks for module in chunk.modules())
        trained = train_step(built, microbatches(built, 0), step=0)
        return {"eval": loss, "train": trained.loss, "training": training, "unchanged": unchanged}


def weights(built: Built) -> list[torch.Tensor]:
    """A copy of every parameter of this rank."""
    return [tensor.detach().clone() for _, tensor in named_tensors(built.program, built.chunks)]


def train_each(jobs: tuple[Job, ...]) -> list[list[float]]:
    """The losses of several jobs, built one after the other in this process."""
    return [train(job, 2).losses for job in jobs]
