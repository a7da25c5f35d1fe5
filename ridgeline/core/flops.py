"""FLOPs of a model: its matrix products and its attention, forward and in training.

A multiply-add counts as two. What is no matrix product (norms, activations, rotary positions, the softmax, the
embedding lookup) is left out, as in every published MFU. Attention has two conventions, always named:

    full     every token against all ``seq_len`` positions, whatever the mask
    causal   a token against the positions it may see, on average half of them, fewer inside a window

Recomputed forwards are no work of the model and never counted.

Source:
    Full attention and the factor 3 of training (backward = 2 forwards): NVIDIA/Megatron-LM d98e8a64,
    megatron/training/training.py, ``num_floating_point_operations``. Causal: half of it, Korthikanti et al. 2022
    (arXiv 2205.05198), appendix A, with the mask taken into account.
"""

from typing import Literal, TypeAlias

from ridgeline.core.errors import PlanError, Problem
from ridgeline.core.model import Attention, Block, FeedForward, Mixer, Mlp, ModelSpec

Convention: TypeAlias = Literal["full", "causal"]
TRAINING_FACTOR = 3


def matmul_params(model: ModelSpec) -> int:
    """Weights that one token is multiplied with: projections, ``topk`` experts, router and head (also when tied).

    Raises:
        PlanError: A mixer has no FLOP count yet.
    """
    layers = sum(run.count * block_matmul_params(run.block, model.hidden) for run in model.blocks)
    return layers + model.vocab_size * model.hidden


def block_matmul_params(block: Block, hidden: int) -> int:
    """Weights of one block that one token is multiplied with."""
    return mixer_matmul_params(block.mixer, hidden) + feed_forward_matmul_params(block.feed_forward, hidden)


def mixer_matmul_params(mixer: Mixer, hidden: int) -> int:
    """Weights of the projections around attention.

    Example:
        >>> mixer_matmul_params(Attention(heads=32, kv_heads=8, head_dim=128), 4096)
        41943040
    """
    attention = _attention_of(mixer)
    return hidden * attention.head_dim * (2 * attention.heads + 2 * attention.kv_heads)


def feed_forward_matmul_params(feed_forward: FeedForward, hidden: int) -> int:
    """Weights of the feed-forward part that one token meets: ``topk`` experts and the router, or the one MLP."""
    width = 3 * hidden * feed_forward.ffn_hidden
    return width if isinstance(feed_forward, Mlp) else feed_forward.topk * width + hidden * feed_forward.experts


def attended_positions(attention: Attention, seq_len: int, convention: Convention) -> float:
    """How many positions a token attends to, on average over a sequence.

    Example:
        >>> attended_positions(Attention(heads=1, kv_heads=1, head_dim=2), 4096, "causal")
        2048.0
    """
    if convention == "full":
        return float(seq_len)
    window = min(attention.window or seq_len, seq_len)
    return window - window * window / (2 * seq_len)


def attention_flops_per_token(mixer: Mixer, seq_len: int, convention: Convention) -> float:
    """Forward FLOPs of ``Q K^T`` and ``P V`` of one layer, per token."""
    attention = _attention_of(mixer)
    return 4 * attended_positions(attention, seq_len, convention) * attention.heads * attention.head_dim


def forward_flops_per_token(model: ModelSpec, seq_len: int, *, attention: Convention) -> float:
    """Forward FLOPs of the whole model, per token of a sequence of ``seq_len``."""
    products = 2 * matmul_params(model)
    return products + sum(
        run.count * attention_flops_per_token(run.block.mixer, seq_len, attention) for run in model.blocks
    )


def training_flops_per_token(model: ModelSpec, seq_len: int, *, attention: Convention) -> float:
    """Forward and backward FLOPs of the whole model, per token of a sequence of ``seq_len``."""
    return TRAINING_FACTOR * forward_flops_per_token(model, seq_len, attention=attention)


def _attention_of(mixer: Mixer) -> Attention:
    if not isinstance(mixer, Attention):
        rule = "has no FLOP count yet, so its time cannot be planned"
        raise PlanError(Problem("model.blocks.mixer", mixer.kind, rule, f"use kind={Attention.kind!r}"))
    return mixer
