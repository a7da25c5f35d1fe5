"""Which experts each token goes to and with what weight, as functions of the router's logits.

n = tokens, e = choices (experts, then experts that give the token back), k = choices of a token.
"""

import math
from typing import Literal

import attrs
import torch

from ridgeline.core.model import Moe
from ridgeline.models.runtime.kernels import Kernel


@attrs.frozen(eq=False)
class Routed:
    """Where tokens go.

    Attributes:
        scores_ne: Of all choices, fp32; None where they were not needed.
        weights_ne: Of the chosen ones; 0 elsewhere.
        chosen_ne: Whether a token chose.
    """

    scores_ne: torch.Tensor | None
    weights_ne: torch.Tensor
    chosen_ne: torch.Tensor


def route(logits_ne: torch.Tensor, moe: Moe, bias_e: torch.Tensor | None = None) -> Routed:
    """Choose ``moe.topk`` experts for each token.

    Args:
        logits_ne: Of the router, fp32.
        moe: Says how scores are made of them, which groups limit the choice, and how weights are scaled.
        bias_e: Added to the scores for choosing only.

    Source:
        DeepSeek-V2, arXiv 2405.04434, section 2.2.2; DeepSeek-V3, arXiv 2412.19437, section 2.1.2.
    """
    if moe.score == "softmax" and moe.normalize_topk and moe.groups == 1 and bias_e is None:
        # The same as scores divided by their sum, without scores for those not chosen.
        top_nk, index_nk = logits_ne.topk(moe.topk, dim=-1)
        scores_ne, weights_nk = None, top_nk.softmax(-1)
    else:
        scores_ne = scores_of(logits_ne, moe.score)
        index_nk = _choose(scores_ne.detach() if bias_e is None else scores_ne.detach() + bias_e, moe)
        weights_nk = scores_ne.gather(1, index_nk)
        if moe.normalize_topk and moe.topk > 1:
            weights_nk = weights_nk / (weights_nk.sum(-1, keepdim=True) + 1e-20)
    if moe.topk_scale != 1.0:
        weights_nk = weights_nk * moe.topk_scale
    weights_ne = torch.zeros_like(logits_ne).scatter(1, index_nk, weights_nk)
    chosen_ne = torch.zeros_like(logits_ne, dtype=torch.bool).scatter(1, index_nk, True)
    return Routed(scores_ne, weights_ne, chosen_ne)


def mix(logits_ne: torch.Tensor, moe: Moe, *, sparsemixer: Kernel, sample: bool) -> Routed:
    """Two experts for each token by the op ``sparsemixer``, drawn or (``sample=False``) the best."""
    weights_nk, index_nk = sparsemixer(logits_ne, jitter=moe.nearness, sample=sample)
    weights_ne = torch.zeros_like(logits_ne).scatter(1, index_nk, weights_nk)
    # The two again, as a top-k: the one choice of which a trace, which has no numbers, knows how many go where.
    chosen_nk = weights_ne.detach().topk(moe.topk, dim=-1).indices
    return Routed(None, weights_ne, torch.zeros_like(logits_ne, dtype=torch.bool).scatter(1, chosen_nk, True))


def scores_of(logits_ne: torch.Tensor, score: str) -> torch.Tensor:
    """Scores of all choices, fp32; what SparseMixer is balanced by is their softmax."""
    return logits_ne.float().sigmoid() if score == "sigmoid" else logits_ne.softmax(-1, dtype=torch.float32)


def _choose(scores_ne: torch.Tensor, moe: Moe) -> torch.Tensor:
    """The best choices of each token, (n, k), among those of its best groups."""
    if moe.groups > 1:
        by_group = scores_ne.unflatten(1, (moe.groups, -1))
        best = by_group.topk({"max": 1, "top2": 2}[moe.group_score], dim=-1).values.sum(-1)
        kept = best.topk(moe.group_topk, dim=-1, sorted=False).indices
        open_ng = torch.zeros_like(best, dtype=torch.bool).scatter(1, kept, True)
        scores_ne = by_group.masked_fill(~open_ng.unsqueeze(-1), float("-inf")).flatten(1)
    return scores_ne.topk(moe.topk, dim=-1).indices


def capacity_of(tokens: int, moe: Moe) -> int:
    """Most tokens of a rank that an expert takes: ``capacity_factor`` times an equal share, rounded up."""
    assert moe.capacity_factor is not None
    return math.ceil(tokens * moe.topk / moe.experts * moe.capacity_factor)


def within_capacity(
    weights_ne: torch.Tensor, chosen_ne: torch.Tensor, *, capacity: int, drop: Literal["probs", "position"], pad: bool
) -> torch.Tensor:
    """Which tokens each expert takes: no more than ``capacity`` of those that chose it.

    Args:
        weights_ne: Of the chosen; 0 elsewhere.
        chosen_ne: Whether a token chose.
        capacity: Tokens of an expert.
        drop: Keep those of the greatest weight, or those that stand first.
        pad: Make every expert's tokens up to ``capacity`` with others, whose weight is 0.
    """
    if capacity >= len(weights_ne):
        return torch.ones_like(chosen_ne) if pad else chosen_ne
    if drop == "probs":
        first = weights_ne.detach().topk(capacity, dim=0, sorted=False).indices
    else:  # a topk of ones and zeros would take any of the ones
        first = chosen_ne.int().argsort(dim=0, descending=True, stable=True)[:capacity]
    taken_ne = torch.zeros_like(chosen_ne).scatter(0, first, True)
    return taken_ne if pad else taken_ne & chosen_ne
