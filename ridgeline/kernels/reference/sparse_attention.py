"""Attention of DeepSeek's latent heads over picked keys, in plain torch.

Legend: ``b`` = batch, ``s`` = queries, ``t`` = keys, ``n`` = heads, ``l`` = latent size, ``r`` = rotary head_dim,
``k`` = picked keys.
"""

import torch
from torch import Tensor


def sparse_attention(
    query_bsnl: Tensor,
    latent_btl: Tensor,
    indices_bsk: Tensor,
    *,
    query_rope_bsnr: Tensor,
    key_rope_btr: Tensor,
    scale: float,
) -> Tensor:
    """Attend to picked keys; all heads share them, and a latent is key and value at once.

    ``softmax(scale * (q latent + q_rope key_rope)) latent`` over the picked positions up to the query's own, of which
    there must be one. Queries are the last ``s`` of the ``t`` positions.

    Args:
        query_bsnl: (b, s, n, l), float, the key projection absorbed.
        latent_btl: (b, t, l), the same dtype.
        indices_bsk: (b, s, k), integers: positions, -1 for none; none twice.
        query_rope_bsnr: (b, s, n, r), the same dtype.
        key_rope_btr: (b, t, r), the same dtype.
        scale: Multiplies the products.

    Returns:
        (b, s, n, l), the same dtype.

    Source:
        DeepSeek-V3.2 technical report (arXiv 2512.02556), section 2.1, in the form of multi-query attention.
    """
    s, t = query_bsnl.shape[1], latent_btl.shape[1]
    wide = torch.promote_types(query_bsnl.dtype, torch.float32)
    scores_bsnt = torch.einsum("bsnl,btl->bsnt", query_bsnl, latent_btl)
    scores_bsnt = (scores_bsnt + torch.einsum("bsnr,btr->bsnt", query_rope_bsnr, key_rope_btr)).to(wide) * scale
    picked_bst = torch.zeros(*indices_bsk.shape[:2], t + 1, dtype=torch.bool, device=latent_btl.device)
    picked_bst.scatter_(-1, indices_bsk.long().where(indices_bsk >= 0, t), True)
    seen_bst = picked_bst[..., :t] & torch.ones(s, t, dtype=torch.bool, device=latent_btl.device).tril(t - s)
    weights_bsnt = scores_bsnt.masked_fill(~seen_bst.unsqueeze(2), float("-inf")).softmax(-1)
    return torch.einsum("bsnt,btl->bsnl", weights_bsnt.to(latent_btl.dtype), latent_btl)
