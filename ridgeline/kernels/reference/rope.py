"""Rotary positions in plain torch.

Legend: ``s`` = sequence, ``b`` = microbatch, ``n`` = heads, ``d`` = head_dim.
"""

import torch


def rope(x_sbnd: torch.Tensor, cos_sb1d: torch.Tensor, sin_sb1d: torch.Tensor) -> torch.Tensor:
    """Turn each pair (i, i + d/2) of a head's elements by the angle of its position: the half layout.

    ``y = x * cos + rotate(x) * sin`` with ``rotate(x) = (-x[d/2:], x[:d/2])``.

    Args:
        x_sbnd: (s, b, n, d), d even, float.
        cos_sb1d: (s, b or 1, 1, d), the two halves alike, the dtype of ``x_sbnd``; no gradient flows to it.
        sin_sb1d: The same for the sine.

    Returns:
        (s, b, n, d), the same dtype.

    Source:
        arXiv 2104.09864, section 3.4.2; the half layout is huggingface/transformers 5.23, ``apply_rotary_pos_emb``.
    """
    first, second = x_sbnd.chunk(2, dim=-1)
    return x_sbnd * cos_sb1d + torch.cat((-second, first), dim=-1) * sin_sb1d
