"""Attention of DeepSeek's latent heads over picked keys on torch_npu.

Legend: as in `ridgeline.kernels.reference.sparse_attention`.
"""

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_shape, refuse_unless

LATENT, ROPE = 512, 64
_CAUSAL_FROM_THE_END = 3
_LATENT_HEADS = 2


def sparse_attention(
    query_bsnl: Tensor,
    latent_btl: Tensor,
    indices_bsk: Tensor,
    *,
    query_rope_bsnr: Tensor,
    key_rope_btr: Tensor,
    scale: float,
) -> Tensor:
    """As `ridgeline.kernels.reference.sparse_attention.sparse_attention`; half precision, latents of 512 + 64.

    Positions stand before the -1 of each row.
    """
    half = (torch.bfloat16, torch.float16)
    tensors = {"latent_btl": latent_btl, "query_rope_bsnr": query_rope_bsnr, "key_rope_btr": key_rope_btr}
    refuse_dtypes("sparse_attention", allowed=half, query_bsnl=query_bsnl, **tensors)
    sizes = (query_bsnl.shape[-1], query_rope_bsnr.shape[-1])
    refuse_unless(sizes == (LATENT, ROPE), "sparse_attention", "(l, r)", sizes, f"must be {(LATENT, ROPE)}")
    samples, queries, heads, _ = query_bsnl.shape
    keys = latent_btl.shape[1]
    refuse_shape("sparse_attention", "latent_btl", latent_btl, (samples, keys, LATENT))
    refuse_shape("sparse_attention", "query_rope_bsnr", query_rope_bsnr, (samples, queries, heads, ROPE))
    refuse_shape("sparse_attention", "key_rope_btr", key_rope_btr, (samples, keys, ROPE))
    refuse_shape("sparse_attention", "indices_bsk", indices_bsk, (samples, queries, indices_bsk.shape[-1]))
    refuse_dtypes("sparse_attention", allowed=(torch.int32, torch.int64), indices_bsk=indices_bsk)
    latent = latent_btl.unsqueeze(2).contiguous()
    return torch.ops.npu.npu_sparse_flash_attention(
        query_bsnl.contiguous(),
        latent,
        latent,
        indices_bsk.int().unsqueeze(2).contiguous(),
        scale,
        query_rope=query_rope_bsnr.contiguous(),
        key_rope=key_rope_btr.unsqueeze(2).contiguous(),
        sparse_mode=_CAUSAL_FROM_THE_END,
        attention_mode=_LATENT_HEADS,
        return_softmax_lse=True,  # the backward wants the maxima and sums
    )[0]
