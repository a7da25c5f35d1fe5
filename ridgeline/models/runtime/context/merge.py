"""Attention to several parts of the keys, merged into attention to all of them.

Legend: ``s`` = queries, ``b`` = microbatch, ``n`` = heads, ``v`` = head_dim of values.

Source:
    Online normalizer calculation for softmax, arXiv 1805.02867; Ring Attention, arXiv 2310.01889, section 3.
"""

import torch


def merge(
    context_sbnv: torch.Tensor, lse_bns: torch.Tensor, part_sbnv: torch.Tensor, part_lse_bns: torch.Tensor
) -> None:
    """Add a part to a context and its logarithms of sums, in place.

    Args:
        context_sbnv: What was attended to so far, fp32 or wider.
        lse_bns: How much it weighs: the logarithm of the sum of exponentials, in the same dtype.
        part_sbnv: Attention to other keys, of any dtype.
        part_lse_bns: How much they weigh.
    """
    total_bns = torch.logaddexp(lse_bns, part_lse_bns)
    kept, added = (_by_row((lse - total_bns).exp()) for lse in (lse_bns, part_lse_bns))
    context_sbnv.mul_(kept).addcmul_(part_sbnv.to(context_sbnv.dtype), added)
    lse_bns.copy_(total_bns)


def _by_row(x_bns: torch.Tensor) -> torch.Tensor:
    return x_bns.permute(2, 0, 1).unsqueeze(-1)
