"""FLOPs of a model: its matrix products and what mixes positions, forward and in training.

A multiply-add counts as two. What is no matrix product (norms, activations, rotary positions, the softmax, the
embedding lookup) is left out, as in every published MFU. Attention has two conventions, always named:

    full     every token against all ``seq_len`` positions, whatever the mask
    causal   a token against the positions it may see, on average half of them, fewer inside a window

Recomputed forwards are no work of the model and never counted. Multi-token prediction is work: a layer and a head each.

Source:
    Full attention, the factor 3 of training (backward = 2 forwards), the scans of Mamba2 and the gated delta rule:
    NVIDIA/Megatron-LM d98e8a64, megatron/training/training.py, ``num_floating_point_operations``. Causal: half of
    attention, Korthikanti et al. 2022 (arXiv 2205.05198), appendix A, with the mask taken into account.
"""

import math
from typing import Literal, TypeAlias

from ridgeline.core.model import Attention, Block, GatedDeltaNet, LatentAttention, Mamba2, Mixer, ModelSpec, Moe
from ridgeline.core.params import block_params, outer_params

Convention: TypeAlias = Literal["full", "causal"]
TRAINING_FACTOR = 3


def matmul_params(model: ModelSpec) -> float:
    """Weights that one token is multiplied with: projections, ``topk`` experts, router and head (also when tied)."""
    layers = sum(run.count * block_matmul_params(run.block, model) for run in model.blocks)
    ends = sum(math.prod(p.shape) for p in outer_params(model) if p.name.startswith("mtp.") and "eh_proj" in p.name)
    mtp = model.mtp * block_matmul_params(model.block_ahead, model)
    return layers + mtp + ends + (1 + model.mtp) * model.vocab_size * model.hidden


def block_matmul_params(block: Block, model: ModelSpec) -> float:
    """Weights of one block that one token is multiplied with; of experts, ``topk``.

    Where some choices of the router are no experts, those get equal shares of the tokens.
    """
    total = 0.0
    for param in block_params(block, model):
        if len(param.shape) < 2:
            continue
        size = math.prod(param.shape)
        if param.experts:
            moe = block.shortcut if param.name.startswith("shortcut.") else block.feed_forward
            assert isinstance(moe, Moe)
            size *= moe.topk * moe.experts / (moe.experts + moe.zero_experts)
        total += size
    return total


def attended_positions(mixer: Attention | LatentAttention, seq_len: int, convention: Convention) -> float:
    """How many positions a token attends to, on average over a sequence.

    An indexer's choice is a limit under both conventions: no kernel computes the rest.

    Example:
        >>> attended_positions(Attention(heads=1, kv_heads=1, head_dim=2), 4096, "causal")
        2048.0
    """
    chosen = mixer.indexer.topk if isinstance(mixer, LatentAttention) and mixer.indexer else seq_len
    if convention == "full":
        return float(min(chosen, seq_len))
    window = min(mixer.window or seq_len if isinstance(mixer, Attention) else chosen, seq_len)
    return window - window * window / (2 * seq_len)


def mixer_flops_per_token(mixer: Mixer | None, seq_len: int, convention: Convention) -> float:
    """Forward FLOPs of one layer that no weight takes part in, per token: ``Q K^T`` and ``P V``, or a scan."""
    match mixer:
        case None:
            return 0.0
        case Attention():
            return 4 * attended_positions(mixer, seq_len, convention) * mixer.heads * mixer.head_dim
        case LatentAttention():
            positions = attended_positions(mixer, seq_len, convention)
            scores = 2 * positions * mixer.heads * (mixer.qk_head_dim + mixer.v_head_dim)
            if mixer.indexer is None or mixer.indexer.shared:
                return scores
            seen = seq_len if convention == "full" else seq_len / 2
            # An indexer scores every position with each of its heads, then weighs the heads.
            return scores + 2 * seen * mixer.indexer.heads * (mixer.indexer.head_dim + 1)
        case GatedDeltaNet():
            return 8 * mixer.value_heads * mixer.key_head_dim * mixer.value_head_dim
        case Mamba2():
            return 7 * mixer.width * mixer.state


def forward_flops_per_token(model: ModelSpec, seq_len: int, *, attention: Convention) -> float:
    """Forward FLOPs of the whole model, per token of a sequence of ``seq_len``."""
    mixers = sum(run.count * mixer_flops_per_token(run.block.mixer, seq_len, attention) for run in model.blocks)
    mtp = model.mtp * mixer_flops_per_token(model.block_ahead.mixer, seq_len, attention)
    return 2 * matmul_params(model) + mixers + mtp


def training_flops_per_token(model: ModelSpec, seq_len: int, *, attention: Convention) -> float:
    """Forward and backward FLOPs of the whole model, per token of a sequence of ``seq_len``."""
    return TRAINING_FACTOR * forward_flops_per_token(model, seq_len, attention=attention)
