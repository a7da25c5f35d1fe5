"""Mixtures of experts: choosing experts, and moving tokens to them and back."""

import torch
from torch import Tensor


def moe_gating_top_k_softmax(x: Tensor, finished: None = None, k: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax, then top-k. The third output numbers (token, choice) choice by choice."""
    assert finished is None
    chosen, experts = x.double().softmax(-1).topk(k)
    rows = torch.arange(k * x.shape[0]).view(k, -1).t()
    return chosen.to(x.dtype), experts.int(), rows.int()


def moe_gating_top_k(
    x: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    input_ids: None = None,
    tid2eid: None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[Tensor, Tensor, Tensor]:
    """Experts are chosen by score plus bias, within the best groups, and weighted by their scores alone."""
    assert renorm == 0
    assert bias is None or bias.dtype == x.dtype
    scores = x.double().sigmoid() if norm_type else x.double().softmax(-1)
    rank = scores if bias is None else scores + bias.double()
    if group_count > 1:
        groups = rank.unflatten(-1, (group_count, -1))
        worth = groups.topk(2).values.sum(-1) if group_select_mode else groups.amax(-1)
        best = torch.zeros_like(worth, dtype=torch.bool).scatter(-1, worth.topk(k_group).indices, True)
        rank = groups.masked_fill(~best.unsqueeze(-1), float("-inf")).flatten(-2)
    experts = rank.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    y = scores.gather(-1, experts)
    if norm_type:
        y = y / (y.sum(-1, keepdim=True) + eps)
    normed = scores.float() if out_flag else torch.empty(0)
    return (y * routed_scaling_factor).to(x.dtype), experts.int(), normed


def moe_gating_top_k_backward(
    x_norm: Tensor,
    grad_y: Tensor,
    expertIdx: Tensor,  # noqa: N803  the schema's name
    *,
    renorm: int = 0,
    norm_type: int = 0,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> Tensor:
    """Of sigmoid scores only: ``d(p / sum p)``, then the sigmoid's slope."""
    assert norm_type == 1
    scores, experts = x_norm.double(), expertIdx.long()
    chosen = scores.gather(-1, experts)
    total = chosen.sum(-1, keepdim=True) + eps
    dy = grad_y.double() * routed_scaling_factor
    dchosen = (dy - (dy * chosen).sum(-1, keepdim=True) / total) / total
    dscores = torch.zeros_like(scores).scatter(-1, experts, dchosen)
    return (dscores * scores * (1 - scores)).to(grad_y.dtype)


def token_permute(
    tokens: Tensor, indices: Tensor, num_out_tokens: int | None = None, padded_mode: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows in the order of their experts, and where each (token, choice) went."""
    assert not padded_mode
    topk = 1 if indices.dim() == 1 else indices.shape[1]
    order = indices.flatten().argsort(stable=True)
    kept = order if not num_out_tokens else order[:num_out_tokens]
    return tokens[kept // topk], order.argsort().int()


def token_permute_grad_v2(
    grad_permuted_tokens: Tensor,
    sorted_indices: Tensor,
    tokens_size_0: int,
    tokens_dtype: torch.dtype,
    num_topK: int,  # noqa: N803  the schema's name
    padded_mode: bool = False,
) -> Tensor:
    """A token's gradient is the sum over its rows; a row that was cut off gives none."""
    rows = _rows(grad_permuted_tokens.double(), sorted_indices)
    return rows.view(tokens_size_0, num_topK, -1).sum(1).to(tokens_dtype)


def _rows(permuted: Tensor, places: Tensor) -> Tensor:
    """The row at each place, zero beyond the end."""
    inside = places.long() < len(permuted)
    return torch.where(inside[:, None], permuted[places.long().clamp(max=len(permuted) - 1)], 0.0)


def token_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: None = None,
) -> Tensor:
    """A token is the sum of its rows, by their weights if given."""
    assert not padded_mode
    topk = 1 if probs is None else probs.shape[1]
    rows = _rows(permuted_tokens.double(), sorted_indices).view(-1, topk, permuted_tokens.shape[-1])
    weighted = rows if probs is None else rows * probs.double().unsqueeze(-1)
    return weighted.sum(1).to(permuted_tokens.dtype)


def token_unpermute_saving(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: None = None,
) -> tuple[Tensor, Tensor]:
    """The forward under autograd: also the rows, for the backward."""
    return token_unpermute(permuted_tokens, sorted_indices, probs, padded_mode, restore_shape), permuted_tokens.clone()


def token_unpermute_grad_v2(
    grad_unpermuted_tokens: Tensor,
    sorted_indices: Tensor,
    permuted_tokens_size_0: int,
    permuted_tokens_dtype: torch.dtype,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: None = None,
    permuted_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dy = grad_unpermuted_tokens.double()
    topk = 1 if probs is None else probs.shape[1]
    spread = dy.repeat_interleave(topk, 0)
    drows = spread if probs is None else spread * probs.double().reshape(-1, 1)
    places = sorted_indices.long()
    inside = places < permuted_tokens_size_0
    dpermuted = torch.zeros(permuted_tokens_size_0, dy.shape[-1], dtype=torch.float64)
    dpermuted[places[inside]] = drows[inside]
    if probs is None:
        return dpermuted.to(permuted_tokens_dtype), torch.empty(0)
    assert permuted_tokens is not None
    dprobs = (_rows(permuted_tokens.double(), sorted_indices) * spread).sum(-1).view(probs.shape)
    return dpermuted.to(permuted_tokens_dtype), dprobs.to(probs.dtype)


def permute_with_routing_map(
    tokens: Tensor,
    routing_map: Tensor,
    *,
    probs: Tensor | None = None,
    num_out_tokens: int | None = None,
    drop_and_pad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows expert by expert, their weights, and the place of each row of a token, token by token."""
    assert not drop_and_pad
    routed = routing_map.bool()
    topk = (num_out_tokens or len(tokens)) // len(tokens)
    assert (routed.sum(1) == topk).all(), "each token must have num_out_tokens / tokens experts"
    _, token = routed.t().nonzero(as_tuple=True)
    chosen = torch.empty(0, dtype=tokens.dtype) if probs is None else probs.t()[routed.t()]
    return tokens[token], chosen, token.argsort(stable=True).int()


def permute_with_routing_map_grad(
    permuted_token_out_grad: Tensor,
    probs_grad: Tensor | None,
    sorted_indices: Tensor,
    routing_map: Tensor,
    experts_num: int,
    tokens_num: int,
    drop_and_pad: bool,
) -> tuple[Tensor, Tensor]:
    rows = permuted_token_out_grad.double()[sorted_indices.long()]
    dtokens = rows.view(tokens_num, -1, rows.shape[-1]).sum(1).to(permuted_token_out_grad.dtype)
    if probs_grad is None:
        return dtokens, torch.empty(0)
    dprobs = torch.zeros(experts_num, tokens_num, dtype=probs_grad.dtype)
    dprobs[routing_map.bool().t()] = probs_grad
    return dtokens, dprobs.t().contiguous()


def unpermute_with_routing_map(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    restore_shape: list[int],
    *,
    probs: Tensor | None = None,
    routing_map: Tensor | None = None,
    drop_and_pad: bool = False,
) -> Tensor:
    """A token is the sum of its rows, by their weights if given."""
    return unpermute_with_routing_map_saving(
        permuted_tokens,
        sorted_indices,
        restore_shape,
        probs=probs,
        routing_map=routing_map,
        drop_and_pad=drop_and_pad,
    )[0]


def unpermute_with_routing_map_saving(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    restore_shape: list[int],
    *,
    probs: Tensor | None = None,
    routing_map: Tensor | None = None,
    drop_and_pad: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The forward under autograd: also the places, and the weights token by token."""
    assert not drop_and_pad
    tokens, hidden = restore_shape
    rows = permuted_tokens.double()[sorted_indices.long()].view(tokens, -1, hidden)
    chosen = torch.empty(0)
    if probs is not None:
        assert routing_map is not None
        chosen = probs[routing_map.bool()]
        rows = rows * chosen.double().view(tokens, -1, 1)
    return rows.sum(1).to(permuted_tokens.dtype), sorted_indices.clone(), sorted_indices.clone(), chosen


def unpermute_with_routing_map_grad(
    unpermuted_tokens_grad: Tensor,
    out_index: Tensor,
    permuted_token_id: Tensor,
    routing_map: Tensor | None,
    permuted_tokens: Tensor | None,
    probs: Tensor | None,
    drop_and_pad: bool,
    restore_shape: list[int],
) -> tuple[Tensor, Tensor]:
    """Without padding torch_npu gives the places under both names."""
    assert not drop_and_pad
    assert torch.equal(out_index, permuted_token_id)
    places = out_index.long()
    dy = unpermuted_tokens_grad.double().repeat_interleave(len(places) // len(unpermuted_tokens_grad), 0)
    drows = torch.empty_like(dy)
    if probs is None:
        drows[places] = dy
        return drows.to(unpermuted_tokens_grad.dtype), torch.empty(0)
    assert routing_map is not None
    assert permuted_tokens is not None
    routed = routing_map.bool()
    drows[places] = dy * probs[routed].double()[:, None]
    dprobs = torch.zeros(probs.shape, dtype=torch.float64)
    dprobs[routed] = (permuted_tokens.double()[places] * dy).sum(-1)
    return drows.to(unpermuted_tokens_grad.dtype), dprobs.to(probs.dtype)
