"""Choosing the experts of each token, in plain torch.

Legend: ``t`` = tokens, ``e`` = experts, ``k`` = experts a token gets.
"""

from typing import Literal

import torch
from torch import Tensor

Scoring = Literal["softmax", "sigmoid"]


def router_topk(
    logits_te: Tensor,
    *,
    topk: int,
    scoring: Scoring = "softmax",
    renormalise: bool,
    bias_e: Tensor | None = None,
    groups: int = 1,
    groups_kept: int = 1,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Take the experts of the highest scores; their weights are these scores.

    A bias and the groups play a part in the choice only. A group is worth the sum of its two best experts, and only the
    experts of the best groups can be chosen.

    Args:
        logits_te: (t, e), fp32.
        topk: 1 <= topk <= groups_kept * e / groups.
        scoring: What makes a score of a logit.
        renormalise: Weights are divided by their sum.
        bias_e: (e,) fp32, added to scores; None for none.
        groups: Equal parts of the experts, each of two at least, or 1.
        groups_kept: How many of them can be chosen from.
        scale: Multiplies the weights at the end.

    Returns:
        Weights (t, topk) fp32, best first, and the experts they belong to, (t, topk) int64.

    Source:
        deepseek-ai/DeepSeek-V3, inference/model.py, ``Gate``.
    """
    scores_te = logits_te.softmax(-1) if scoring == "softmax" else logits_te.sigmoid()
    ranked = scores_te.detach() if bias_e is None else scores_te.detach() + bias_e
    if groups > 1:
        grouped = ranked.unflatten(-1, (groups, -1))
        worth = grouped.topk(2, dim=-1).values.sum(-1)
        lost = torch.ones_like(worth, dtype=torch.bool).scatter(-1, worth.topk(groups_kept, dim=-1).indices, False)
        ranked = grouped.masked_fill(lost.unsqueeze(-1), float("-inf")).flatten(-2)
    experts_tk = ranked.topk(topk, dim=-1).indices
    weights_tk = scores_te.gather(-1, experts_tk)
    if renormalise:
        weights_tk = weights_tk / (weights_tk.sum(-1, keepdim=True) + 1e-20)
    return weights_tk * scale, experts_tk
