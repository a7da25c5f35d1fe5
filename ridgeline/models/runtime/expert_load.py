"""How busy each expert was in a step, over all ranks, and the expert biases that follow from it."""

from collections.abc import Iterator

import attrs
import torch
from torch import distributed

from ridgeline.core.model import FeedForward, ModelSpec, Moe
from ridgeline.models.runtime.build import Built
from ridgeline.models.runtime.router import ExpertRouter


@attrs.frozen(kw_only=True)
class ExpertLoad:
    """The experts of a step, the same on every rank.

    Attributes:
        tokens: By layer of the model that has experts, how many tokens chose each, in all microbatches; layers of
            multi-token prediction stand behind the others.
        dropped: Share of these choices for which there was no room, 0 .. 1.
        balance_loss: Mean over microbatches of all balance losses and z-losses, with their coefficients.
    """

    tokens: dict[int, tuple[int, ...]]
    dropped: float
    balance_loss: float

    @property
    def least(self) -> int:
        """Tokens of the least busy expert of all layers."""
        return min(map(min, self.tokens.values()))

    @property
    def most(self) -> int:
        """Tokens of the busiest expert of all layers."""
        return max(map(max, self.tokens.values()))

    @property
    def imbalance(self) -> float:
        """Tokens of the busiest expert over the mean of its layer, at most over the layers; 1.0 is balance."""
        return max(max(layer) * len(layer) / max(1, sum(layer)) for layer in self.tokens.values())


@torch.no_grad()
def load_of_step(built: Built) -> ExpertLoad | None:
    """Add up what the routers of all ranks counted; every rank calls it."""
    parts = _feed_forwards(built.program.job.model)
    widths = {layer: part.experts + part.zero_experts + 2 for layer, part in enumerate(parts) if isinstance(part, Moe)}
    if not widths:
        return None
    counts = torch.zeros(len(parts), max(widths.values()), device=built.device)
    for layer, router in _routers(built):
        counts[layer, : widths[layer]] = router.counted
    distributed.all_reduce(counts)
    rows = {layer: row[: widths[layer]] for layer, row in enumerate(counts.tolist()) if layer in widths}
    tokens = {layer: tuple(map(round, row[:-2])) for layer, row in rows.items()}
    kept = sum(row[-2] for row in rows.values())
    data = built.program.data
    return ExpertLoad(
        tokens=tokens,
        dropped=1.0 - kept / max(1, sum(map(sum, tokens.values()))),
        balance_loss=sum(row[-1] for row in rows.values()) / (data.num_microbatches * data.dp),
    )


@torch.no_grad()
def move_expert_biases(built: Built, load: ExpertLoad) -> None:
    """Raise the bias of each expert that had less than its layer's mean, and lower it where it had more.

    Source:
        arXiv 2408.15664, algorithm 1; DeepSeek-V3, arXiv 2412.19437, section 2.1.2.
    """
    for layer, router in _routers(built):
        if router.expert_bias is not None:
            tokens = torch.tensor(load.tokens[layer], device=router.expert_bias.device, dtype=torch.float32)
            router.expert_bias += router.moe.expert_bias_rate * (tokens.mean() - tokens).sign()


def forget_load(built: Built) -> None:
    """Begin counting anew."""
    for _, router in _routers(built):
        router.counted.zero_()


def _routers(built: Built) -> Iterator[tuple[int, ExpertRouter]]:
    """The routers of this rank, each with its layer in the model."""
    model = built.program.job.model
    parts = _feed_forwards(model)
    for chunk, place in zip(built.chunks, built.program.chunks, strict=True):
        found = [module for module in chunk.modules() if isinstance(module, ExpertRouter)]
        behind = range(model.num_layers, len(parts)) if place.post_process else ()
        layers = [layer for layer in (*place.layers, *behind) if isinstance(parts[layer], Moe)]
        yield from zip(layers, found, strict=True)


def _feed_forwards(model: ModelSpec) -> list[FeedForward | None]:
    """Of all layers, or the experts beside them; then of those of multi-token prediction."""
    blocks = [*model.layers(), *[model.block_ahead] * model.mtp]
    return [block.shortcut or block.feed_forward for block in blocks]
