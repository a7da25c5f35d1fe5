"""Rotary positions in plain torch.

Legend: ``s`` = sequence, ``b`` = microbatch, ``n`` = heads, ``d`` = head_dim.
"""

import torch


def rope(
    x_sbnd: torch.Tensor, cos_sb1d: torch.Tensor, sin_sb1d: torch.Tensor, *, interleaved: bool = False
) -> torch.Tensor:
    """Turn pairs of a head's elements by the angles of its position.

    ``y = x * cos + rotate(x) * sin``. In the half layout pairs are (i, i + d/2), ``rotate(x) = (-x[d/2:], x[:d/2])``;
    interleaved they are neighbours, (2i, 2i + 1). Tables narrower than a head turn its first elements and leave the
    rest.

    Args:
        x_sbnd: (s, b, n, d), d even, float.
        cos_sb1d: (s, b or 1, 1, up to d and even), a value for each element: the two halves alike or, interleaved,
            each two neighbours; the dtype of ``x_sbnd``; no gradient flows to it.
        sin_sb1d: The same for the sine.
        interleaved: Pairs are neighbours.

    Returns:
        (s, b, n, d), the same dtype.

    Source:
        arXiv 2104.09864, section 3.4.2; the half layout is huggingface/transformers 5.23, ``apply_rotary_pos_emb`` of
        Llama, the interleaved one that of Ernie 4.5.
    """
    turned, rest = x_sbnd.split((cos_sb1d.shape[-1], x_sbnd.shape[-1] - cos_sb1d.shape[-1]), dim=-1)
    if interleaved:
        rotated = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = turned.chunk(2, dim=-1)
        rotated = torch.cat((-second, first), dim=-1)
    turned = turned * cos_sb1d + rotated * sin_sb1d
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
