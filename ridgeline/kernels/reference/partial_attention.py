"""Attention to a part of the keys, with what merges it with attention to the others, in plain torch.

Legend: as in `ridgeline.kernels.reference.attention`; ``r`` = query heads of a key-value head.
"""

import torch
from torch import Tensor

from ridgeline.kernels.masks import Band


def partial_attention(
    query_sbnd: Tensor, key_tbgd: Tensor, value_tbgv: Tensor, *, scale: float, mask: Band
) -> tuple[Tensor, Tensor]:
    """Attend to some of the keys, and tell how much they weigh. It records no gradient.

    Args:
        query_sbnd: (s, b, n, d), float.
        key_tbgd: (t, b, g, d), the same dtype; g divides n.
        value_tbgv: (t, b, g, v).
        scale: What the products are multiplied by.
        mask: What a query sees, at least one key; queries are the last ``s`` of the ``t`` positions.

    Returns:
        The context (s, b, n, v) in the dtype of the queries, and the logarithm of the sum of the exponentials of each
        query's products, (b, n, s), fp32 or wider.

    Source:
        FlashAttention, arXiv 2205.14135, section 3.1.
    """
    scores = _scores(query_sbnd, key_tbgd, scale, mask)
    lse_bgrs = scores.logsumexp(-1)
    weights = (scores - lse_bgrs.unsqueeze(-1)).exp()
    context = weights @ value_tbgv.permute(1, 2, 0, 3).unsqueeze(2).to(weights.dtype)
    return context.flatten(1, 2).permute(2, 0, 1, 3).to(query_sbnd.dtype).contiguous(), lse_bgrs.flatten(1, 2)


def partial_attention_grad(
    grad_sbnv: Tensor,
    query_sbnd: Tensor,
    key_tbgd: Tensor,
    value_tbgv: Tensor,
    context_sbnv: Tensor,
    lse_bns: Tensor,
    *,
    scale: float,
    mask: Band,
) -> tuple[Tensor, Tensor, Tensor]:
    """What some of the keys add to the gradients of attention to all of them.

    Args:
        grad_sbnv: Of the context of all keys.
        query_sbnd, key_tbgd, value_tbgv: As for the forward.
        context_sbnv: Of all keys.
        lse_bns: Of all keys.
        scale, mask: As for the forward.

    Returns:
        Of the queries what these keys add, and of the keys and values what these queries add, in their dtypes.

    Source:
        FlashAttention-2, arXiv 2307.08691, section 3.1.2.
    """
    kv_heads = key_tbgd.shape[2]
    scores = _scores(query_sbnd, key_tbgd, scale, mask)
    grad, query, context = (_by_group(x, kv_heads, scores.dtype) for x in (grad_sbnv, query_sbnd, context_sbnv))
    key, value = (x.permute(1, 2, 0, 3).unsqueeze(2).to(scores.dtype) for x in (key_tbgd, value_tbgv))
    weights = (scores - lse_bns.unflatten(1, (kv_heads, -1)).unsqueeze(-1)).exp()
    moved = (grad @ value.transpose(-1, -2) - (grad * context).sum(-1, keepdim=True)) * weights * scale
    dquery = (moved @ key).flatten(1, 2).permute(2, 0, 1, 3)
    dkey, dvalue = ((x.transpose(-1, -2) @ y).sum(2).permute(2, 0, 1, 3) for x, y in ((moved, query), (weights, grad)))
    return dquery.to(query_sbnd.dtype), dkey.to(key_tbgd.dtype), dvalue.to(value_tbgv.dtype)


def _scores(query_sbnd: Tensor, key_tbgd: Tensor, scale: float, mask: Band) -> Tensor:
    """Masked products of every query and key, (b, g, r, s, t), fp32 or wider."""
    wide = torch.promote_types(query_sbnd.dtype, torch.float32)
    query, key = _by_group(query_sbnd, key_tbgd.shape[2], wide), key_tbgd.permute(1, 2, 3, 0).unsqueeze(2).to(wide)
    scores = query @ key * scale
    s, t = scores.shape[-2:]
    distance_st = torch.arange(t - s, t, device=query.device).unsqueeze(1) - torch.arange(t, device=query.device)
    if mask.before is not None:
        scores = scores.masked_fill(distance_st > mask.before, float("-inf"))
    if mask.after is not None:
        scores = scores.masked_fill(-distance_st > mask.after, float("-inf"))
    return scores


def _by_group(x_sbnd: Tensor, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """Query heads by the key-value head that they read, (b, g, r, s, d)."""
    return x_sbnd.permute(1, 2, 0, 3).unflatten(1, (kv_heads, -1)).to(dtype)
