"""What ranks run for the comparisons of this folder."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import distributed

from ridgeline.core.job import Job
from ridgeline.kernels.device import open_device
from ridgeline.models.program import lower
from ridgeline.models.runtime.build import Built, build
from ridgeline.models.runtime.logits import logits
from ridgeline.models.runtime.model import named_tensors
from ridgeline.models.runtime.step import accumulate, train_step
from ridgeline.parallel.plan import plan


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
    """Train from the initial weights."""
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        accumulate(built, microbatches(built, 0), whole=True)
        gradients = list(pieces(built))
        done = [train_step(built, microbatches(built, step), step=step) for step in range(steps)]
    return Trained([d.loss for d in done], [d.grad_norm for d in done], [d.tokens for d in done], gradients)


def pieces(built: Built) -> Iterator[Piece]:
    """This rank's part of every gradient."""
    for owned, tensor in named_tensors(built.program, built.chunks):
        values = tensor.main_grad.detach().float().numpy().copy()
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
    from ridgeline.checkpoint.io.initial import load_initial

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


def forwards_of_a_step(job: Job) -> dict[str, int]:
    """How often the modules of each class run forward in a training step."""
    counts: Counter[str] = Counter()
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        for module in (module for chunk in built.chunks for module in chunk.modules()):
            module.register_forward_hook(lambda module, args, output: counts.update([type(module).__name__]))
        train_step(built, microbatches(built, 0), step=0)
    return dict(counts)
