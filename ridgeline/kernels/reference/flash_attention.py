"""Softmax attention of any layout, mask and bias in plain torch.

Legend: ``s`` = query positions, ``t`` = key positions, ``b`` = batch, ``n`` = query heads, ``g`` = key-value heads,
``d`` = head_dim of queries and keys, ``v`` = of values; ``h`` = n*d or its like.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ridgeline.kernels.masks import CAUSAL, Band, Prefix

Layout = Literal["SBH", "BSH", "BSND", "BNSD", "TND"]
Mask = Band | Prefix | Tensor


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: Layout,
    heads: int,
    scale: float,
    mask: Mask = CAUSAL,
    q_lengths: Sequence[int] | None = None,
    kv_lengths: Sequence[int] | None = None,
    sinks_n: Tensor | None = None,
    alibi_n: Tensor | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend: ``softmax(softcap(scale * q k) - alibi * distance) v``, computed in fp32 or wider.

    Args:
        query: In SBH (s, b, n*d), BSH (b, s, n*d), BSND (b, s, n, d), BNSD (b, n, s, d), or TND (sum of s, n, d): all
            sequences one after the other.
        key: The same with t, g and d; g divides n, and query head i reads key-value head ``i // (n/g)``.
        value: The same with t, g and v.
        layout: Of all three and of the output.
        heads: n.
        scale: What the products are multiplied by.
        mask: What a query sees; a tensor is bool, True sees, and broadcasts to (b, n, s, t). TND takes no prefix and
            no tensor.
        q_lengths: Of the sequences of TND, each >= 0; None for other layouts.
        kv_lengths: The same for keys; > 0 where the query's is.
        sinks_n: (n,), logits of one more key whose value is zero; None for none.
        alibi_n: (n,) fp32, slopes: a key at distance r gets ``-slope * r``; None for none.
        softcap: Products become ``softcap * tanh(product / softcap)``; None leaves them.
        dropout: Probability with which each weight is zeroed, the others scaled up.

    Returns:
        The layout of the queries, with heads of size v.

    Source:
        Sinks: openai/gpt-oss, ``sdpa``; ALiBi: arXiv 2108.12409, section 3; soft-capping: arXiv 2408.00118, section 2.
    """
    kv_heads = _kv_heads(query, key, layout, heads)
    queries = _sequences(query, heads, layout, q_lengths)
    keys, values = (_sequences(x, kv_heads, layout, kv_lengths) for x in (key, value))
    outs = []
    for index, (q, k, v) in enumerate(zip(queries, keys, values, strict=True)):
        scores = q @ k.repeat_interleave(heads // kv_heads, 0).transpose(1, 2) * scale
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if softcap is not None:
            wide = softcap * torch.tanh(wide / softcap)
        if alibi_n is not None:
            distances = _distances(*wide.shape[1:], device=wide.device).abs().to(wide.dtype)
            wide = wide - alibi_n[:, None, None].to(wide.dtype) * distances
        weights = _softmax(wide.masked_fill(~_visible(mask, index, wide), float("-inf")), sinks_n)
        weights = torch.nn.functional.dropout(weights, dropout)
        outs.append(weights.to(v.dtype) @ v.repeat_interleave(heads // kv_heads, 0))
    return _joined(outs, layout)


def _kv_heads(query: Tensor, key: Tensor, layout: Layout, heads: int) -> int:
    if layout in ("SBH", "BSH"):
        return key.shape[-1] * heads // query.shape[-1]
    return key.shape[1 if layout in ("BNSD", "TND") else 2]


def _sequences(x: Tensor, heads: int, layout: Layout, lengths: Sequence[int] | None) -> Sequence[Tensor]:
    """Each sequence as (heads, length, head_dim)."""
    if layout == "TND":
        assert lengths is not None
        return [part.transpose(0, 1) for part in x.split(list(lengths))]
    if layout == "SBH":
        return x.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3).unbind()
    if layout == "BSH":
        return x.unflatten(-1, (heads, -1)).transpose(1, 2).unbind()
    return (x if layout == "BNSD" else x.transpose(1, 2)).unbind()


def _joined(outs: Sequence[Tensor], layout: Layout) -> Tensor:
    if layout == "TND":
        return torch.cat([out.transpose(0, 1) for out in outs])
    out_bnsv = torch.stack(list(outs))
    if layout == "SBH":
        return out_bnsv.permute(2, 0, 1, 3).flatten(2)
    if layout == "BSH":
        return out_bnsv.transpose(1, 2).flatten(2)
    return out_bnsv if layout == "BNSD" else out_bnsv.transpose(1, 2)


def _distances(s: int, t: int, *, device: torch.device) -> Tensor:
    """How far each key stands before each query, (s, t)."""
    return torch.arange(t - s, t, device=device)[:, None] - torch.arange(t, device=device)


def _visible(mask: Mask, index: int, scores_nst: Tensor) -> Tensor:
    """What a sequence's queries see, broadcastable to (n, s, t)."""
    if isinstance(mask, Tensor):
        return mask if mask.dim() == 2 else mask[index if mask.shape[0] > 1 else 0]
    distances = _distances(*scores_nst.shape[1:], device=scores_nst.device)
    if isinstance(mask, Prefix):
        return (distances >= 0) | (torch.arange(distances.shape[1], device=distances.device) < mask.lengths[index])
    visible = torch.ones_like(distances, dtype=torch.bool)
    if mask.before is not None:
        visible &= distances <= mask.before
    if mask.after is not None:
        visible &= distances >= -mask.after
    return visible


def _softmax(scores_nst: Tensor, sinks_n: Tensor | None) -> Tensor:
    if sinks_n is None:
        return scores_nst.softmax(-1)
    sinks = sinks_n.to(scores_nst.dtype)[:, None, None].expand(-1, scores_nst.shape[1], 1)
    return torch.cat((scores_nst, sinks), -1).softmax(-1)[..., :-1]
