"""What trains an indexer: its scores are to say what attention's heads look at.

Legend: ``s`` = queries, ``t`` = keys, ``b`` = samples, ``n`` = heads of this rank, ``l`` = latent size, ``r`` =
elements of a head that turn, ``k`` = chosen positions.

Source:
    DeepSeek-V3.2, arXiv 2512.02556, section 2.1.1, equation 4: the stage of sparse training.
"""

import torch
from torch import distributed

ROWS = 256
"""Queries whose scores over all keys are held at once."""


def indexer_loss(scores_bsk: torch.Tensor, attended_bsk: torch.Tensor) -> torch.Tensor:
    """The sum over queries of the divergence of an indexer's softmax from where attention looks, a number in fp32.

    Args:
        scores_bsk: Of the chosen positions, ``-inf`` where there are fewer.
        attended_bsk: What attention's heads together give each, fp32, 0 there.
    """
    log_share_bsk = scores_bsk.float().log_softmax(-1).masked_fill(scores_bsk == float("-inf"), 0.0)
    target_bsk = attended_bsk / attended_bsk.sum(-1, keepdim=True)
    return (torch.xlogy(target_bsk, target_bsk) - target_bsk * log_share_bsk).sum()


@torch.no_grad()
def attended(
    query_bsnl: torch.Tensor,
    latent_btl: torch.Tensor,
    indices_bsk: torch.Tensor,
    *,
    query_rope_bsnr: torch.Tensor,
    key_rope_btr: torch.Tensor,
    scale: float,
    tp_group: distributed.ProcessGroup,
) -> torch.Tensor:
    """The sum over all heads, of all tp ranks, of the weights that each chosen position has in attention, (b, s, k).

    Arguments are those of the op ``sparse_attention``.
    """
    query_bsnd = torch.cat((query_bsnl, query_rope_bsnr), dim=-1)
    key_btd = torch.cat((latent_btl, key_rope_btr), dim=-1)
    parts = zip(query_bsnd.split(ROWS, dim=1), indices_bsk.split(ROWS, dim=1), strict=True)
    total_bsk = torch.cat([_attended(query, key_btd, indices, scale) for query, indices in parts], dim=1)
    if tp_group.size() > 1:
        distributed.all_reduce(total_bsk, group=tp_group)
    return total_bsk


def _attended(query_bsnd: torch.Tensor, key_btd: torch.Tensor, indices_bsk: torch.Tensor, scale: float) -> torch.Tensor:
    scores_bsnt = torch.einsum("bsnd,btd->bsnt", query_bsnd, key_btd).float() * scale
    places_bsnk = indices_bsk.clamp(min=0).unsqueeze(2).expand(-1, -1, query_bsnd.shape[2], -1)
    scores_bsnk = scores_bsnt.gather(-1, places_bsnk).masked_fill((indices_bsk < 0).unsqueeze(2), float("-inf"))
    return scores_bsnk.softmax(-1).sum(2)
