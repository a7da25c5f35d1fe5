"""The losses that keep experts equally busy, of a microbatch whose tokens lie on several ranks.

n = tokens of this rank, s = those of a sample, b = samples, e = experts, g = groups of experts.
"""

import torch
from torch import distributed

from ridgeline.core.model import Moe
from ridgeline.models.runtime.routing import Routed, scores_of


def balance_loss(
    routed: Routed, logits_ne: torch.Tensor, moe: Moe, *, samples: int, group: distributed.ProcessGroup
) -> torch.Tensor:
    """This rank's part of all balance losses; the parts of a group's ranks add up to the microbatch's.

    Over experts, groups of experts (devices) and what is sent to the groups, weighed by ``aux_loss``,
    ``device_aux_loss`` and ``comm_aux_loss``: each a mean over samples if ``aux_per_sequence``, else over all tokens.

    Args:
        routed: What the router chose; with an expert bias, the losses count what it had chosen without.
        logits_ne: Of the router, samples of a position side by side: (s*b, e).
        moe: Whose coefficients are used.
        samples: b.
        group: Ranks that hold the other tokens of the same samples.

    Source:
        DeepSeek-V2, arXiv 2405.04434, equations 23 to 31; DeepSeek-V3, arXiv 2412.19437, equations 17 to 20.
    """
    scores_ne = routed.scores_ne if routed.scores_ne is not None else scores_of(logits_ne, moe.score)
    if moe.score == "sigmoid":
        scores_ne = scores_ne / (scores_ne.sum(-1, keepdim=True) + 1e-20)
    chosen_ne = _unbiased(scores_ne, moe) if moe.expert_bias else routed.chosen_ne
    windows = samples if moe.aux_per_sequence else 1
    choices = chosen_ne.shape[1]
    chosen_sbe = chosen_ne.view(-1, windows, choices)
    sent_sbg = chosen_sbe.unflatten(2, (moe.groups, -1)).any(-1)
    counts = torch.cat((chosen_sbe.sum(0), sent_sbg.sum(0)), 1).float()
    if group.size() > 1:
        distributed.all_reduce(counts, group=group)
    tokens = chosen_sbe.shape[0] * group.size()
    chosen_be, sent_bg = counts.split((choices, moe.groups), 1)
    share_be = chosen_be * (choices / (moe.topk * tokens))
    score_be = scores_ne.view(-1, windows, choices).sum(0) / tokens
    share_bg = share_be.unflatten(1, (moe.groups, -1)).mean(-1)
    score_bg = score_be.unflatten(1, (moe.groups, -1)).sum(-1)
    sent_share_bg = sent_bg * (moe.groups / (moe.group_topk * tokens))
    by_window = (
        moe.aux_loss * (share_be * score_be).sum(-1)
        + moe.device_aux_loss * (share_bg * score_bg).sum(-1)
        + moe.comm_aux_loss * (sent_share_bg * score_bg).sum(-1)
    )
    return by_window.mean()


def z_loss(logits_ne: torch.Tensor, moe: Moe, *, group: distributed.ProcessGroup) -> torch.Tensor:
    """This rank's part of the mean squared log of the sum of exponentials, times ``moe.z_loss``.

    Source:
        ST-MoE, arXiv 2202.08906, equation 5.
    """
    return moe.z_loss * logits_ne.float().logsumexp(-1).square().mean() / group.size()


def _unbiased(scores_ne: torch.Tensor, moe: Moe) -> torch.Tensor:
    best = scores_ne.detach().topk(moe.topk, dim=-1).indices
    return torch.zeros_like(scores_ne, dtype=torch.bool).scatter(1, best, True)
