"""The lightning indexer of DeepSeek's sparse attention in plain torch.

Legend: ``b`` = batch, ``s`` = queries, ``t`` = keys, ``n`` = indexer heads, ``d`` = their head_dim, ``k`` = picked
keys.
"""

import torch
from torch import Tensor


def lightning_indexer(query_bsnd: Tensor, key_btd: Tensor, weights_bsn: Tensor, *, topk: int) -> tuple[Tensor, Tensor]:
    """Of the keys up to each query's position, those of the highest ``sum_n weight relu(q k)``; of equals the first.

    Queries are the last ``s`` of the ``t`` positions. A gradient flows through the scores.

    Args:
        query_bsnd: (b, s, n, d), float.
        key_btd: (b, t, d), the same dtype, s <= t.
        weights_bsn: (b, s, n), the same dtype.
        topk: k >= 1.

    Returns:
        Indices, (b, s, k) int32, best first, -1 where fewer than k keys are seen; and their scores, (b, s, k), the
        dtype of the queries, ``-inf`` there.

    Source:
        DeepSeek-V3.2 technical report (arXiv 2512.02556), equation 1.
    """
    s, t = query_bsnd.shape[1], key_btd.shape[1]
    wide = torch.promote_types(query_bsnd.dtype, torch.float32)
    products_bsnt = torch.einsum("bsnd,btd->bsnt", query_bsnd, key_btd).relu().to(wide)
    scores_bst = torch.einsum("bsnt,bsn->bst", products_bsnt, weights_bsn.to(wide))
    seen_st = torch.ones(s, t, dtype=torch.bool, device=key_btd.device).tril(t - s)
    scores_bst = scores_bst.masked_fill(~seen_st, float("-inf"))
    best, short = scores_bst.sort(dim=-1, descending=True, stable=True), max(0, topk - t)
    scores_bsk = torch.nn.functional.pad(best.values[..., :topk], (0, short), value=float("-inf"))
    indices_bsk = torch.nn.functional.pad(best.indices[..., :topk], (0, short), value=-1)
    return indices_bsk.masked_fill(scores_bsk == float("-inf"), -1).int(), scores_bsk.to(query_bsnd.dtype)
