"""Choosing the experts of each token on torch_npu.

Legend: ``t`` = tokens, ``e`` = experts, ``k`` = experts a token gets.
"""

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_shape, refuse_unless
from ridgeline.kernels.reference.router_topk import Scoring

MAX_EXPERTS = 2048
MAX_TOPK = 1024
_SIGMOID, _SUM_OF_TWO_BEST = 1, 1


def router_topk(
    logits_te: Tensor,
    *,
    topk: int,
    scoring: Scoring = "softmax",
    renormalise: bool,
    bias_e: Tensor | None = None,
    groups: int = 1,
    groups_kept: int = 1,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """As `ridgeline.kernels.reference.router_topk.router_topk`.

    Softmax scores take neither a bias nor groups, since only their choice is the kernel's, which has no derivative.
    Sigmoid scores must be renormalised, and a group has three experts at least.
    """
    refuse_dtypes("router_topk", logits_te=logits_te, bias_e=bias_e)
    experts = logits_te.shape[1]
    refuse_unless(experts <= MAX_EXPERTS, "router_topk", "experts", experts, f"must be <= {MAX_EXPERTS}")
    most = min(MAX_TOPK, experts)
    refuse_unless(topk <= most, "router_topk", "topk", topk, f"must be <= {most}")
    if bias_e is not None:
        refuse_shape("router_topk", "bias_e", bias_e, (experts,))
    if scoring == "softmax":
        plain = bias_e is None and groups == 1
        refuse_unless(plain, "router_topk", "scoring", scoring, "takes no bias and no groups here", "use sigmoid")
        return _by_softmax(logits_te, topk, renormalise, scale)
    refuse_unless(renormalise, "router_topk", "renormalise", renormalise, "must be True for sigmoid scores")
    rule = f"must leave a group more than two of {experts} experts"
    refuse_unless(experts // groups > 2, "router_topk", "groups", groups, rule)
    weights_tk, experts_tk, _ = torch.ops.npu.npu_moe_gating_top_k(
        logits_te,
        topk,
        bias=bias_e,
        k_group=groups_kept,
        group_count=groups,
        group_select_mode=_SUM_OF_TWO_BEST,
        norm_type=_SIGMOID,
        out_flag=True,  # the backward wants the scores
        routed_scaling_factor=scale,
        eps=1e-20,
    )
    return weights_tk, experts_tk.long()


def _by_softmax(logits_te: Tensor, topk: int, renormalise: bool, scale: float) -> tuple[Tensor, Tensor]:
    experts_tk = torch.ops.npu.npu_moe_gating_top_k_softmax(logits_te.detach(), None, topk)[1].long()
    weights_tk = logits_te.softmax(-1).gather(-1, experts_tk)
    if renormalise:
        weights_tk = weights_tk / (weights_tk.sum(-1, keepdim=True) + 1e-20)
    return weights_tk * scale, experts_tk
