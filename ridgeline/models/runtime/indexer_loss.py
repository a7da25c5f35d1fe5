"""What trains an indexer: its scores are to say what attention's heads look at.

Legend: ``s`` = queries, ``t`` = keys, ``b`` = samples, ``n`` = heads of this rank, ``l`` = latent size, ``r`` =
elements of a head that turn, ``k`` = chosen positions.

Source:
    DeepSeek-V3.2, arXiv 2512.02556, section 2.1.1, equation 4: the stage of sparse training.
"""

from typing import Any

import torch

ROWS = 64
"""Queries whose chosen keys are held at once."""


def indexer_loss(scores_bsk: torch.Tensor, attended_bsk: torch.Tensor) -> torch.Tensor:
    """The sum over queries of the divergence of an indexer's softmax from where attention looks, a number in fp32.

    Args:
        scores_bsk: Of the chosen positions, ``-inf`` where there are fewer.
        attended_bsk: What attention's heads together give each, fp32, 0 there.
    """
    return _Divergence.apply(scores_bsk, attended_bsk)  # pyright: ignore[reportReturnType]


class _Divergence(torch.autograd.Function):
    """Keeps its gradient, and neither of what it compares."""

    @staticmethod
    def forward(ctx: Any, scores_bsk: torch.Tensor, attended_bsk: torch.Tensor) -> torch.Tensor:
        log_share_bsk = scores_bsk.to(attended_bsk.dtype).log_softmax(-1)
        target_bsk = attended_bsk / attended_bsk.sum(-1, keepdim=True)
        ctx.save_for_backward((log_share_bsk.exp() - target_bsk).to(scores_bsk.dtype))
        log_share_bsk = log_share_bsk.masked_fill(scores_bsk == float("-inf"), 0.0)
        return (torch.xlogy(target_bsk, target_bsk) - target_bsk * log_share_bsk).sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient_bsk,) = ctx.saved_tensors
        return (gradient * gradient_bsk).to(gradient_bsk.dtype), None


@torch.no_grad()
def attended(
    query_bsnl: torch.Tensor,
    query_rope_bsnr: torch.Tensor,
    latent_btl: torch.Tensor,
    key_rope_btr: torch.Tensor,
    indices_bsk: torch.Tensor,
    *,
    scale: float,
) -> torch.Tensor:
    """The sum over this rank's heads of the weights that each chosen position has in attention, (b, s, k) in fp32.

    Arguments are those of the op ``sparse_attention``.
    """
    keys = torch.cat((latent_btl, key_rope_btr), dim=-1)
    parts = zip(*(x.split(ROWS, dim=1) for x in (query_bsnl, query_rope_bsnr, indices_bsk)), strict=True)
    return torch.cat([_attended(torch.cat((plain, turned), dim=-1), keys, at, scale) for plain, turned, at in parts], 1)


def _attended(query_bsnd: torch.Tensor, key_btd: torch.Tensor, indices_bsk: torch.Tensor, scale: float) -> torch.Tensor:
    samples = torch.arange(len(key_btd), device=key_btd.device)[:, None, None]
    chosen_bskd = key_btd[samples, indices_bsk.clamp(min=0).long()]
    scores_bsnk = torch.einsum("bsnd,bskd->bsnk", query_bsnd, chosen_bskd)
    scores_bsnk = scores_bsnk.to(torch.promote_types(scores_bsnk.dtype, torch.float32)) * scale
    return scores_bsnk.masked_fill((indices_bsk < 0).unsqueeze(2), float("-inf")).softmax(-1).sum(2)
