"""Flash attention's four ops, as their schemas have them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ridgeline.kernels.npu.virtual.emulations.softmax_attention import Call, backward, forward


def fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = 2**31 - 1,
    next_tockens: int = 2**31 - 1,
    inner_precise: int = 0,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    dropout_mask: None = None,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    assert dropout_mask is None
    call = _call(
        key,
        query,
        head_num,
        input_layout,
        pse=pse,
        padding_mask=padding_mask,
        atten_mask=atten_mask,
        scale=scale,
        keep_prob=keep_prob,
        before=pre_tockens,
        after=next_tockens,
        prefix=prefix,
        actual_seq_qlen=actual_seq_qlen,
        actual_seq_kvlen=actual_seq_kvlen,
        sparse_mode=sparse_mode,
        softmax_layout=softmax_layout,
        sink=sink,
    )
    out, maxima, sums, drawn = forward(call, query, key, value)
    return out, maxima, sums, torch.empty(0), drawn, 0, 0


def fusion_attention_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    *,
    softmax_max: Tensor,
    softmax_sum: Tensor,
    attention_in: Tensor,
    softmax_in: Tensor | None = None,
    scale_value: float = 1.0,
    pre_tockens: int = 2**31 - 1,
    next_tockens: int = 2**31 - 1,
    seed: int = 0,
    offset: int = 0,
    numels: int = 0,
    **shared: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    call = _call(
        key, query, head_num, input_layout, scale=scale_value, before=pre_tockens, after=next_tockens, **shared
    )
    dq, dk, dv, dsink = backward(
        call, query, key, value, dy, maxima=softmax_max, sums=softmax_sum, out=attention_in, seed=seed
    )
    return dq, dk, dv, torch.empty(0), dsink


def fusion_attention_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    *,
    query_rope: None = None,
    key_rope: None = None,
    pre_tokens: int = 2**31 - 1,
    next_tokens: int = 2**31 - 1,
    dropout_mask: None = None,
    seed: int = 0,
    offset: int = 0,
    **shared: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    assert query_rope is key_rope is dropout_mask is None
    call = _call(key, query, head_num, input_layout, before=pre_tokens, after=next_tokens, **shared)
    out, maxima, sums, drawn = forward(call, query, key, value)
    return out, maxima, sums, torch.empty(0), drawn, 0, 0


def fusion_attention_grad_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    *,
    softmax_max: Tensor,
    softmax_sum: Tensor,
    attention_in: Tensor,
    softmax_in: Tensor | None = None,
    query_rope: None = None,
    key_rope: None = None,
    scale_value: float = 1.0,
    pre_tokens: int = 2**31 - 1,
    next_tokens: int = 2**31 - 1,
    seed: int = 0,
    offset: int = 0,
    numels: int = 0,
    **shared: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    assert query_rope is key_rope is None
    call = _call(key, query, head_num, input_layout, scale=scale_value, before=pre_tokens, after=next_tokens, **shared)
    dq, dk, dv, dsink = backward(
        call, query, key, value, dy, maxima=softmax_max, sums=softmax_sum, out=attention_in, seed=seed
    )
    return dq, dk, dv, torch.empty(0), torch.empty(0), torch.empty(0), dsink


def _call(
    key: Tensor,
    query: Tensor,
    head_num: int,
    layout: str,
    *,
    pse: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    before: int,
    after: int,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    sparse_mode: int = 0,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    pse_type: int = 1,
    q_start_idx: Sequence[int] | None = None,
    kv_start_idx: Sequence[int] | None = None,
    padding_mask: None = None,
    inner_precise: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
) -> Call:
    assert padding_mask is None
    assert layout != "TND" or actual_seq_qlen is not None
    _check_template(atten_mask, sparse_mode)
    if layout in ("BSH", "SBH"):
        kv_heads = key.shape[-1] * head_num // query.shape[-1]
    else:
        kv_heads = key.shape[{"BSND": 2, "BNSD": 1, "TND": 1}[layout]]
    return Call(
        head_num=head_num,
        layout=layout,
        pse=pse,
        atten_mask=atten_mask,
        scale=scale,
        keep_prob=keep_prob,
        before=before,
        after=after,
        prefix=prefix,
        q_ends=actual_seq_qlen or (),
        kv_ends=actual_seq_kvlen or (),
        sparse_mode=sparse_mode,
        softmax_layout=softmax_layout,
        sink=sink,
        pse_type=pse_type,
        q_start=(q_start_idx or [0])[0],
        kv_start=(kv_start_idx or [0])[0],
        kv_heads=kv_heads,
    )


def _check_template(mask: Tensor | None, mode: int) -> None:
    """Compressed modes want the one template of their documentation."""
    if mask is None:
        return
    triangle = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
    if mode in (2, 3, 4, 7, 8):
        assert torch.equal(mask.bool(), triangle), f"sparse_mode={mode} needs the 2048 x 2048 triangle"
    if mode == 6:
        lower = torch.ones(1024, 2048, dtype=torch.bool)
        lower[:, :1024] = False
        assert torch.equal(mask.bool(), torch.cat((triangle, lower))), "sparse_mode=6 needs its 3072 x 2048 template"
