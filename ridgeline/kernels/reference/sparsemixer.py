"""SparseMixer, the router of Phi-3.5-MoE, in plain torch.

Legend: ``t`` = tokens, ``e`` = experts.
"""

import torch
from torch import Tensor


def sparsemixer(logits_te: Tensor, *, jitter: float, sample: bool) -> tuple[Tensor, Tensor]:
    """Two experts a token, the second without the first; each weighs by its softmax among those near the best.

    Near the best is what lies within ``2 * jitter`` of it, relative to the larger magnitude. In training both experts
    are drawn by these weights, and the weight is a third where the expert is not the best, three times of four; its
    gradient is that of the weight itself (Heun's third-order estimate).

    Args:
        logits_te: (t, e), fp32; e > 1.
        jitter: > 0.
        sample: Draw, as in training; otherwise the best are taken.

    Returns:
        Weights (t, 2) and the experts they belong to, (t, 2) int64.

    Source:
        arXiv 2409.12136, section 2.1; its numbers are huggingface/transformers 5.23's, ``sparsemixer``.
    """
    first_weight, first = _pick(logits_te, logits_te, jitter=jitter, sample=sample)
    others_te = logits_te.scatter(-1, first, float("-inf"))
    second_weight, second = _pick(others_te, logits_te, jitter=jitter, sample=sample)
    return torch.cat((first_weight, second_weight), -1), torch.cat((first, second), -1)


def _pick(candidates_te: Tensor, logits_te: Tensor, *, jitter: float, sample: bool) -> tuple[Tensor, Tensor]:
    """One expert a token and its weight, each (t, 1)."""
    with torch.no_grad():
        best = candidates_te.amax(-1, keepdim=True)
        far = (best - logits_te) / logits_te.abs().clamp(min=best) > 2 * jitter
    near_te = candidates_te.masked_fill(far, float("-inf"))
    weights_te = near_te.softmax(-1)
    if not sample:
        experts = candidates_te.argmax(-1, keepdim=True)
        return weights_te.gather(-1, experts), experts
    experts = (near_te - torch.empty_like(near_te).exponential_().log()).argmax(-1, keepdim=True)
    weight = weights_te.gather(-1, experts)
    whole = (experts == weights_te.argmax(-1, keepdim=True)) | (torch.rand_like(weight) > 0.75)
    scaled = weight * (0.3333 + 0.6667 * whole.to(weight.dtype))
    return weight + (scaled - weight).detach(), experts
