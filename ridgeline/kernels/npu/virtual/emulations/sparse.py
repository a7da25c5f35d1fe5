"""DeepSeek's sparse attention: the indexer that picks keys, and attention over what it picked.

Legend: ``b`` = batch, ``s`` = queries, ``t`` = keys, ``n`` = heads, ``k`` = picked keys.
"""

import torch
from torch import Tensor

_ALL = 2**63 - 1


def _visible(s: int, t: int, mode: int) -> Tensor:
    assert mode in (0, 3)
    seen = torch.ones(s, t, dtype=torch.bool)
    return seen if mode == 0 else seen.tril(t - s)


def lightning_indexer(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    *,
    actual_seq_lengths_query: None = None,
    actual_seq_lengths_key: None = None,
    block_table: None = None,
    layout_query: str = "BSND",
    layout_key: str = "BSND",
    sparse_count: int = 2048,
    sparse_mode: int = 3,
    pre_tokens: int = _ALL,
    next_tokens: int = _ALL,
    return_value: bool = False,
) -> tuple[Tensor, Tensor]:
    """Keys by ``sum_n w relu(q k)``, best first, (b, s, 1, k); -1 where fewer are visible."""
    assert actual_seq_lengths_query is actual_seq_lengths_key is block_table is None
    assert layout_query == layout_key == "BSND"
    products = torch.einsum("bsnd,btd->bsnt", query.double(), key[:, :, 0].double())
    scores = torch.einsum("bsnt,bsn->bst", products.relu(), weights.double())
    scores = scores.masked_fill(~_visible(query.shape[1], key.shape[1], sparse_mode), float("-inf"))
    width = max(0, sparse_count - scores.shape[-1])
    scores = torch.nn.functional.pad(scores, (0, width), value=float("-inf"))
    best = scores.sort(dim=-1, descending=True, stable=True)
    values, indices = best.values[..., :sparse_count], best.indices[..., :sparse_count]
    indices = indices.masked_fill(values == float("-inf"), -1)
    return indices.int().unsqueeze(2), values.to(query.dtype).unsqueeze(2)


def lightning_indexer_grad(
    query: Tensor,
    key: Tensor,
    dy: Tensor,
    sparse_indices: Tensor,
    weights: Tensor,
    actual_seq_lengths_query: None = None,
    actual_seq_lengths_key: None = None,
    layout: str | None = "BSND",
    sparse_mode: int | None = 3,
    pre_tokens: int | None = _ALL,
    next_tokens: int | None = _ALL,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and weights from those of the values at the picked places."""
    picked = sparse_indices[:, :, 0].long()
    dscores = torch.zeros(*picked.shape[:2], key.shape[1], dtype=torch.float64)
    dscores.scatter_add_(-1, picked.clamp(min=0), dy[:, :, 0].double().masked_fill(picked < 0, 0.0))
    products = torch.einsum("bsnd,btd->bsnt", query.double(), key[:, :, 0].double())
    dweights = torch.einsum("bst,bsnt->bsn", dscores, products.relu())
    dproducts = torch.einsum("bst,bsn->bsnt", dscores, weights.double()) * (products > 0)
    dquery = torch.einsum("bsnt,btd->bsnd", dproducts, key[:, :, 0].double())
    dkey = torch.einsum("bsnt,bsnd->btd", dproducts, query.double()).unsqueeze(2)
    return dquery.to(query.dtype), dkey.to(key.dtype), dweights.to(weights.dtype)


def _weights(
    query: Tensor,
    key: Tensor,
    sparse_indices: Tensor,
    scale_value: float,
    query_rope: Tensor | None,
    key_rope: Tensor | None,
    sparse_mode: int,
) -> tuple[Tensor, Tensor]:
    """Scores of all keys, (b, s, n, t), hidden unless picked and visible."""
    scores = torch.einsum("bsnd,btd->bsnt", query.double(), key[:, :, 0].double())
    if query_rope is not None and key_rope is not None:
        scores = scores + torch.einsum("bsnd,btd->bsnt", query_rope.double(), key_rope[:, :, 0].double())
    picked = sparse_indices[:, :, 0].long()
    seen = torch.zeros(*picked.shape[:2], key.shape[1] + 1, dtype=torch.bool)
    seen.scatter_(-1, picked.masked_fill(picked < 0, key.shape[1]), True)
    seen = seen[..., :-1] & _visible(query.shape[1], key.shape[1], sparse_mode)
    return (scores * scale_value).masked_fill(~seen.unsqueeze(2), float("-inf")), seen


def sparse_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    sparse_indices: Tensor,
    scale_value: float,
    *,
    block_table: None = None,
    actual_seq_lengths_query: None = None,
    actual_seq_lengths_kv: None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    sparse_block_size: int = 1,
    layout_query: str = "BSND",
    layout_kv: str = "BSND",
    sparse_mode: int = 3,
    pre_tokens: int = _ALL,
    next_tokens: int = _ALL,
    attention_mode: int = 0,
    return_softmax_lse: bool = False,
    sinks: None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax attention over the picked keys; maxima and sums are (b, 1, s, n)."""
    assert block_table is actual_seq_lengths_query is actual_seq_lengths_kv is sinks is None
    assert sparse_block_size == 1
    assert layout_query == layout_kv == "BSND"
    assert attention_mode == 2
    assert value is not None
    scores, _ = _weights(query, key, sparse_indices, scale_value, query_rope, key_rope, sparse_mode)
    top = scores.amax(-1, keepdim=True)
    weights = (scores - top).exp()
    norm = weights.sum(-1, keepdim=True)
    out = torch.einsum("bsnt,btd->bsnd", weights / norm, value[:, :, 0].double())
    maxima, sums = (x.squeeze(-1).unsqueeze(1).float() for x in (top, norm))
    return out.to(query.dtype), maxima, sums


def sparse_flash_attention_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    sparse_indices: Tensor,
    d_out: Tensor,
    out: Tensor,
    softmax_max: Tensor,
    softmax_sum: Tensor,
    scale_value: float,
    sparse_block_size: int,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    actual_seq_qlen: None = None,
    actual_seq_kvlen: None = None,
    layout: str | None = "BSND",
    sparse_mode: int | None = 3,
    pre_tokens: int | None = _ALL,
    next_tokens: int | None = _ALL,
    attention_mode: int | None = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    assert value is not None
    scores, _ = _weights(query, key, sparse_indices, scale_value, query_rope, key_rope, sparse_mode or 0)
    weights = (scores - softmax_max[:, 0].double().unsqueeze(-1)).exp() / softmax_sum[:, 0].double().unsqueeze(-1)
    dout = d_out.double()
    dweights = torch.einsum("bsnd,btd->bsnt", dout, value[:, :, 0].double())
    dscores = weights * (dweights - (dout * out.double()).sum(-1, keepdim=True)) * scale_value
    dvalue = torch.einsum("bsnt,bsnd->btd", weights, dout).unsqueeze(2).to(value.dtype)

    def gradients(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        dq = torch.einsum("bsnt,btd->bsnd", dscores, k[:, :, 0].double()).to(q.dtype)
        return dq, torch.einsum("bsnt,bsnd->btd", dscores, q.double()).unsqueeze(2).to(k.dtype)

    dquery, dkey = gradients(query, key)
    if query_rope is None or key_rope is None:
        return dquery, dkey, dvalue, None, None
    return dquery, dkey, dvalue, *gradients(query_rope, key_rope)
