"""Causal attention with grouped key-value heads in plain torch.

Legend: ``s`` = query positions, ``t`` = key positions, ``b`` = microbatch, ``n`` = query heads, ``g`` = key-value
heads, ``d`` = head_dim of queries and keys, ``v`` = of values.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

from ridgeline.kernels.documents import document_lengths


def attention(
    query_sbnd: torch.Tensor,
    key_tbgd: torch.Tensor,
    value_tbgv: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend from each position to itself and those before it.

    Queries are the last ``s`` of the ``t`` positions, so that s < t continues from cached keys. Query head i reads
    key-value head ``i // (n/g)``. The softmax is computed in fp32 or wider.

    Args:
        query_sbnd: (s, b, n, d), float, s <= t.
        key_tbgd: (t, b, g, d), the same dtype; g divides n.
        value_tbgv: (t, b, g, v).
        scale: What the products are multiplied by, usually ``d ** -0.5``.
        window: Number of positions a query sees, itself included, >= 1; None sees all.
        cu_seqlens: (documents + 1,), integers from 0 to b*s: where documents begin, and the last one's end, counted
            sample after sample; a sample's edge ends a document in any case. A query sees its own document only. Needs
            s == t. None makes each sample one document.

    Returns:
        (s, b, n, v), the dtype of the queries.
    """
    inputs = (query_sbnd, key_tbgd, value_tbgv)
    if cu_seqlens is None:
        context_bnsv = _attend(*(x.permute(1, 2, 0, 3) for x in inputs), scale=scale, window=window)
        return context_bnsv.permute(2, 0, 1, 3)
    s, b, n, _ = query_sbnd.shape
    lengths = document_lengths(cu_seqlens.tolist(), size=s, samples=b)
    documents = zip(*(_in_a_row(x).split(lengths, dim=2) for x in inputs), strict=True)
    contexts = [_attend(*document, scale=scale, window=window) for document in documents]
    return torch.cat(contexts, dim=2).view(n, b, s, -1).permute(2, 1, 0, 3)


def _in_a_row(x_sbnd: torch.Tensor) -> torch.Tensor:
    """All samples one after the other, (1, n, b*s, d)."""
    return x_sbnd.permute(2, 1, 0, 3).flatten(1, 2).unsqueeze(0)


def _attend(
    query_bnsd: torch.Tensor,
    key_bgtd: torch.Tensor,
    value_bgtv: torch.Tensor,
    *,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """The context of one document a sample, (b, n, s, v)."""
    num_queries, num_keys = query_bnsd.shape[2], key_bgtd.shape[2]
    banded = window is not None and window < num_keys
    # A mask costs memory and, where it is not needed, half of the speed.
    causal = num_queries == num_keys and not banded
    mask = (
        None if causal or (num_queries == 1 and not banded) else _mask(query_bnsd.device, num_queries, num_keys, window)
    )
    return scaled_dot_product_attention(
        query_bnsd,
        key_bgtd,
        value_bgtv,
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=query_bnsd.shape[1] != key_bgtd.shape[1],
    )


def _mask(device: torch.device, num_queries: int, num_keys: int, window: int | None) -> torch.Tensor:
    """Which keys each query sees, (s, t): not after it, and not ``window`` or more before it."""
    query_s1 = torch.arange(num_keys - num_queries, num_keys, device=device).unsqueeze(1)
    distance_st = query_s1 - torch.arange(num_keys, device=device)
    return (distance_st >= 0) & (distance_st < (window or num_keys))
