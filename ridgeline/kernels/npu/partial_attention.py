"""Attention to a part of the keys on torch_npu, and its gradients, by the ops that attention itself is made of.

Legend: as in `ridgeline.kernels.reference.partial_attention`.
"""

import torch
from torch import Tensor

from ridgeline.kernels.masks import Band
from ridgeline.kernels.npu.flash_attention import check_call, mask_arguments

_LANES = 8
"""Copies of a statistic that the kernels keep side by side."""


def partial_attention(
    query_sbnd: Tensor, key_tbgd: Tensor, value_tbgv: Tensor, *, scale: float, mask: Band
) -> tuple[Tensor, Tensor]:
    """As `ridgeline.kernels.reference.partial_attention.partial_attention`, within the bounds of `flash_attention`."""
    heads = query_sbnd.shape[2]
    query, key, value = (_flat(x) for x in (query_sbnd, key_tbgd, value_tbgv))
    check_call(query, key, value, layout="SBH", heads=heads, mask=mask, op="partial_attention")
    arguments = mask_arguments(mask, device=query.device)
    with torch.no_grad():
        context_sbh, greatest, total, *_ = torch.ops.npu.npu_fusion_attention(
            query,
            key,
            value,
            heads,
            "SBH",
            atten_mask=arguments.atten_mask,
            sparse_mode=arguments.sparse_mode,
            pre_tockens=arguments.before,
            next_tockens=arguments.after,
            scale=scale,
            keep_prob=1.0,
        )
    return context_sbh.unflatten(-1, (heads, -1)), (greatest + total.log())[..., 0].contiguous()


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
    """As `ridgeline.kernels.reference.partial_attention.partial_attention_grad`.

    The op makes weights of the maximum and the sum that it is given, ``exp(product - maximum) / sum``: those of all
    keys are their logarithm and 1.
    """
    heads = query_sbnd.shape[2]
    query, key, value, grad, context = (_flat(x) for x in (query_sbnd, key_tbgd, value_tbgv, grad_sbnv, context_sbnv))
    check_call(query, key, value, layout="SBH", heads=heads, mask=mask, op="partial_attention_grad")
    arguments = mask_arguments(mask, device=query.device)
    lse = lse_bns.unsqueeze(-1).expand(-1, -1, -1, _LANES).contiguous()
    dquery, dkey, dvalue, *_ = torch.ops.npu.npu_fusion_attention_grad(
        query,
        key,
        value,
        grad,
        heads,
        "SBH",
        atten_mask=arguments.atten_mask,
        sparse_mode=arguments.sparse_mode,
        pre_tockens=arguments.before,
        next_tockens=arguments.after,
        softmax_max=lse,
        softmax_sum=torch.ones_like(lse),
        attention_in=context,
        scale_value=scale,
        keep_prob=1.0,
    )
    return dquery.view_as(query_sbnd), dkey.view_as(key_tbgd), dvalue.view_as(value_tbgv)


def _flat(x_sbnd: Tensor) -> Tensor:
    return x_sbnd.flatten(2).contiguous()
