"""Causal attention with grouped key-value heads on torch_npu.

Legend: as in `ridgeline.kernels.reference.attention`.
"""

from torch import Tensor

from ridgeline.kernels.documents import document_lengths
from ridgeline.kernels.masks import CAUSAL
from ridgeline.kernels.masks import window as window_of
from ridgeline.kernels.npu.flash_attention import flash_attention
from ridgeline.kernels.npu.refuse import refuse_unless


def attention(
    query_sbnd: Tensor,
    key_tbgd: Tensor,
    value_tbgv: Tensor,
    *,
    scale: float,
    window: int | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """As `ridgeline.kernels.reference.attention.attention`, within the bounds of `flash_attention`."""
    s, b, heads, _ = query_sbnd.shape
    mask = CAUSAL if window is None else window_of(window)
    if cu_seqlens is None:
        # Contiguous, lest a view that the backward keeps holds all of the fused projection that it is cut from.
        inputs = (x.flatten(2).contiguous() for x in (query_sbnd, key_tbgd, value_tbgv))
        context_sbh = flash_attention(*inputs, layout="SBH", heads=heads, scale=scale, mask=mask)
        return context_sbh.unflatten(-1, (heads, -1))
    refuse_unless(len(key_tbgd) == s, "attention", "t", len(key_tbgd), f"must be s={s} where documents are packed")
    lengths = document_lengths(cu_seqlens.tolist(), size=s, samples=b)
    inputs = (x.transpose(0, 1).flatten(0, 1).contiguous() for x in (query_sbnd, key_tbgd, value_tbgv))
    context_tnv = flash_attention(
        *inputs, layout="TND", heads=heads, scale=scale, mask=mask, q_lengths=lengths, kv_lengths=lengths
    )
    return context_tnv.unflatten(0, (b, s)).transpose(0, 1)
