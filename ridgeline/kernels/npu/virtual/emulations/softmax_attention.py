"""Softmax attention in float64, forward and backward, in every layout and mask mode of its documentation.

Legend: ``n`` = query heads, ``g`` = key-value heads, ``s`` = queries, ``t`` = keys of one sequence, ``d`` = head_dim.
"""

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

_LANES = 8
"""How often each maximum and sum stands in a row of 32 bytes."""


@attrs.frozen(kw_only=True, eq=False)
class Call:
    """The arguments that forward and backward share."""

    head_num: int
    layout: str
    pse: Tensor | None
    atten_mask: Tensor | None
    scale: float
    keep_prob: float
    before: int
    after: int
    prefix: Sequence[int] | None
    q_ends: Sequence[int]
    kv_ends: Sequence[int]
    sparse_mode: int
    softmax_layout: str
    sink: Tensor | None
    pse_type: int
    q_start: int
    kv_start: int
    kv_heads: int


def _sequences(x: Tensor, heads: int, layout: str, ends: Sequence[int]) -> list[Tensor]:
    """Views of the sequences of a tensor, (heads, length, d) each."""
    if layout == "TND":
        return [x[begin:end].transpose(0, 1) for begin, end in zip((0, *ends), ends, strict=False)]
    if layout in ("BSH", "SBH"):
        x = x.unflatten(-1, (heads, -1))
    batch_heads = {
        "BSH": x.transpose(1, 2),
        "BSND": x.transpose(1, 2),
        "SBH": x.permute(1, 2, 0, 3) if x.dim() == 4 else x,
        "BNSD": x,
    }
    return list(batch_heads[layout])


def _statistics(x: Tensor, call: Call) -> list[Tensor]:
    """Views of maxima or sums by sequence, (n, s, lanes): a varlen tensor holds one dense (n, s, lanes) block after
    the other, whatever its shape says, unless its layout is asked to be TND."""
    if call.layout != "TND":
        return list(x)
    if call.softmax_layout == "TND":
        return _sequences(x, call.head_num, "TND", call.q_ends)
    blocks, flat = [], x.view(-1)
    for begin, end in zip((0, *call.q_ends), call.q_ends, strict=False):
        row = call.head_num * _LANES
        blocks.append(flat[begin * row : end * row].view(call.head_num, end - begin, _LANES))
    return blocks


def _hidden(call: Call, index: int, count: int, s: int, t: int) -> Tensor | None:
    """What a sequence's queries do not see, broadcastable to (n, s, t)."""
    if call.atten_mask is None:
        return None
    row, column = torch.arange(s)[:, None], torch.arange(t)[None]
    end_aligned = row + t - s
    band = (column - end_aligned <= call.after) & (end_aligned - column <= call.before)
    mode = call.sparse_mode
    if mode in (0, 1):
        mask = call.atten_mask.bool()
        if mask.dim() == 4:
            mask = mask[index if mask.shape[0] > 1 else 0]
        return mask[..., :s, :t]
    if mode in (5, 6):
        assert call.prefix is not None
        return ~((column <= end_aligned) | (column < call.prefix[index]))
    visible = {
        2: column <= row,
        3: column <= end_aligned,
        4: band,
        7: band if index == count - 1 else column <= end_aligned,
        8: band if index == 0 else column <= row,
    }
    return ~visible[mode]


def _scores(call: Call, q_nsd: Tensor, k_ntd: Tensor, index: int, count: int) -> Tensor:
    scores = q_nsd @ k_ntd.transpose(1, 2)
    s, t = scores.shape[1:]
    if call.pse is not None and call.pse_type in (0, 1):
        bias = call.pse[index if call.pse.shape[0] > 1 else 0].double()
        scores = (scores + bias) * call.scale if call.pse_type == 1 else scores * call.scale + bias
    else:
        scores = scores * call.scale
    if call.pse is not None and call.pse_type in (2, 3):
        assert call.pse.dtype == torch.float32
        distance = (torch.arange(s)[:, None] + call.q_start - torch.arange(t)[None] - call.kv_start).abs().double()
        slopes = (call.pse if call.pse.dim() == 1 else call.pse[index]).double()
        scores = scores - slopes[:, None, None] * (distance if call.pse_type == 2 else distance.sqrt())
    hidden = _hidden(call, index, count, s, t)
    return scores if hidden is None else scores.masked_fill(hidden, float("-inf"))


def _kept(call: Call, shape: torch.Size, seed: int, index: int) -> Tensor | float:
    """Which weights dropout keeps, over the share it keeps: drawn anew from the seed in the backward."""
    if call.keep_prob == 1.0:
        return 1.0
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed + index), dtype=torch.float64)
    return (drawn < call.keep_prob).double() / call.keep_prob


def _spread(x_gtd: Tensor, call: Call) -> Tensor:
    """Each key-value head once for every query head that reads it."""
    return x_gtd.double().repeat_interleave(call.head_num // call.kv_heads, 0)


def _gathered(x_ntd: Tensor, call: Call) -> Tensor:
    return x_ntd.unflatten(0, (call.kv_heads, -1)).sum(1)


def _joined(outs_nsd: Sequence[Tensor], call: Call) -> Tensor:
    """The outputs of all sequences as one tensor of the layout."""
    if call.layout == "TND":
        return torch.cat([out.transpose(0, 1) for out in outs_nsd])
    out_bnsd = torch.stack(list(outs_nsd))
    if call.layout == "BNSD":
        return out_bnsd
    if call.layout == "SBH":
        return out_bnsd.permute(2, 0, 1, 3).flatten(2)
    out_bsnd = out_bnsd.transpose(1, 2)
    return out_bsnd.flatten(2) if call.layout == "BSH" else out_bsnd.contiguous()


def forward(call: Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    queries = _sequences(query, call.head_num, call.layout, call.q_ends)
    keys = _sequences(key, call.kv_heads, call.layout, call.kv_ends)
    values = _sequences(value, call.kv_heads, call.layout, call.kv_ends)
    size = (query.shape[0], call.head_num) if call.layout == "TND" else (len(queries), *queries[0].shape[:2])
    maxima, sums = (torch.zeros(*size, _LANES) for _ in range(2))
    seed = int(torch.randint(2**31, ())) if call.keep_prob < 1 else 0
    rows = zip(queries, keys, values, _statistics(maxima, call), _statistics(sums, call), strict=True)
    outs = []
    for index, (q, k, v, maximum, total) in enumerate(rows):
        if not q.shape[1]:
            outs.append(q.new_zeros(call.head_num, 0, v.shape[-1]))
            continue
        scores = _scores(call, q.double(), _spread(k, call), index, len(queries))
        top = scores.amax(-1, keepdim=True)
        if call.sink is not None:
            top = torch.maximum(top, call.sink.double()[:, None, None])
        weights = (scores - top).exp()
        norm = weights.sum(-1, keepdim=True)
        if call.sink is not None:
            norm = norm + (call.sink.double()[:, None, None] - top).exp()
        out = (weights / norm * _kept(call, weights.shape, seed, index)) @ _spread(v, call)
        outs.append(out.to(query.dtype))
        maximum.copy_(top.detach().expand_as(maximum))
        total.copy_(norm.detach().expand_as(total))
    return _joined(outs, call), maxima, sums, seed


def backward(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    *,
    maxima: Tensor,
    sums: Tensor,
    out: Tensor,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients from the maxima, sums and output that are given, which may be those of more keys than these."""
    dquery, dkey, dvalue = (torch.zeros_like(x) for x in (query, key, value))
    dsink = None if call.sink is None else torch.zeros_like(call.sink, dtype=torch.float64)
    of_queries = [_sequences(x, call.head_num, call.layout, call.q_ends) for x in (query, dy, out, dquery)]
    of_keys = [_sequences(x, call.kv_heads, call.layout, call.kv_ends) for x in (key, value, dkey, dvalue)]
    rows = zip(*of_queries, *of_keys, _statistics(maxima, call), _statistics(sums, call), strict=True)
    count = len(of_queries[0])
    for index, (q, do, o, dq, k, v, dk, dv, maximum, total) in enumerate(rows):
        top, norm = maximum[..., :1].double(), total[..., :1].double()
        weights = (_scores(call, q.double(), _spread(k, call), index, count) - top).exp() / norm
        kept = _kept(call, weights.shape, seed, index)
        mean = (do.double() * o.double()).sum(-1, keepdim=True)
        dscores = weights * ((do.double() @ _spread(v, call).transpose(1, 2)) * kept - mean) * call.scale
        dq.copy_(dscores @ _spread(k, call))
        dk.copy_(_gathered(dscores.transpose(1, 2) @ q.double(), call))
        dv.copy_(_gathered((weights * kept).transpose(1, 2) @ do.double(), call))
        if dsink is not None:
            assert call.sink is not None
            dsink -= ((call.sink.double()[:, None, None] - top).exp() / norm * mean).sum((1, 2))
    return dquery, dkey, dvalue, None if dsink is None else dsink.float()
