"""Cross entropy of each token, in plain torch: of whole logits, of logits split over ranks, of a fused projection.

Legend: ``t`` = tokens, ``v`` = vocabulary, this rank's part where it is split; ``h`` = hidden.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup


def cross_entropy(logits_tv: Tensor, targets_t: Tensor) -> Tensor:
    """``-log softmax(logits)[target]``, computed in fp32 or wider.

    Args:
        logits_tv: (t, v), float.
        targets_t: (t,), int64, 0 <= target < v.

    Returns:
        (t,), fp32 or wider.
    """
    return torch.nn.functional.cross_entropy(_wide(logits_tv), targets_t, reduction="none")


def vocab_parallel_cross_entropy(logits_tv: Tensor, targets_t: Tensor, *, group: ProcessGroup) -> Tensor:
    """The same, of logits whose vocabulary is split over a group in equal parts, in the order of ranks.

    Args:
        logits_tv: (t, v), float, this rank's part of the vocabulary.
        targets_t: (t,), int64, of the whole vocabulary; the same on all ranks.
        group: The ranks that hold the parts.

    Returns:
        (t,), fp32 or wider, the same on all ranks.

    Source:
        arXiv 1909.08053, section 3, last paragraph.
    """
    return _VocabParallel.apply(logits_tv, targets_t, group)


def linear_cross_entropy(
    hidden_th: Tensor,
    weight_vh: Tensor,
    targets_t: Tensor,
    *,
    chunk_tokens: int,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Cross entropy of ``hidden @ weight^T`` without ever holding the logits of more than a chunk of tokens.

    Args:
        hidden_th: (t, h), float.
        weight_vh: (v, h), the same dtype; where ``group`` is given, this rank's part.
        targets_t: (t,), int64, of the whole vocabulary.
        chunk_tokens: >= 1.
        group: The ranks over which the vocabulary is split; the gradient of ``hidden_th`` is then summed over them.
            None if it is whole.

    Returns:
        (t,), fp32 or wider. The backward computes logits anew.
    """
    return _LinearCrossEntropy.apply(hidden_th, weight_vh, targets_t, chunk_tokens, group)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _loss(logits_tv: Tensor, targets_t: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Losses, and the softmax of this rank's part."""
    wide = _wide(logits_tv)
    top = _reduced(wide.amax(-1), group, distributed.ReduceOp.MAX)
    weights = (wide - top[:, None]).exp_()
    total = _reduced(weights.sum(-1), group)
    here, places = _own(targets_t, wide.shape[1], group)
    target_logit = _reduced(wide.gather(1, places[:, None])[:, 0].where(here, 0.0), group)
    return total.log() + top - target_logit, weights.div_(total[:, None])


def _dlogits(softmax_tv: Tensor, targets_t: Tensor, dloss_t: Tensor, group: ProcessGroup | None) -> Tensor:
    here, places = _own(targets_t, softmax_tv.shape[1], group)
    one = torch.zeros_like(softmax_tv).scatter_(1, places[:, None], here[:, None].to(softmax_tv.dtype))
    return (softmax_tv - one) * dloss_t[:, None]


def _own(targets_t: Tensor, size: int, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Which targets are in this rank's part of the vocabulary, and where (somewhere, if they are not)."""
    places = targets_t - size * (0 if group is None else group.rank())
    return (places >= 0) & (places < size), places.clamp(0, size - 1)


def _reduced(x: Tensor, group: ProcessGroup | None, op: Any = distributed.ReduceOp.SUM) -> Tensor:
    if group is not None:
        distributed.all_reduce(x, op=op, group=group)
    return x


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_tv: Tensor, targets_t: Tensor, group: ProcessGroup) -> Tensor:
        loss_t, softmax_tv = _loss(logits_tv, targets_t, group)
        ctx.save_for_backward(softmax_tv, targets_t)
        ctx.group, ctx.dtype = group, logits_tv.dtype
        return loss_t

    @staticmethod
    def backward(ctx: Any, dloss_t: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        softmax_tv, targets_t = ctx.saved_tensors
        return _dlogits(softmax_tv, targets_t, dloss_t, ctx.group).to(ctx.dtype), None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_th: Tensor, weight_vh: Tensor, targets_t: Tensor, chunk_tokens: int, group: ProcessGroup | None
    ) -> Tensor:
        ctx.save_for_backward(hidden_th, weight_vh, targets_t)
        ctx.chunk_tokens, ctx.group = chunk_tokens, group
        chunks = zip(hidden_th.split(chunk_tokens), targets_t.split(chunk_tokens), strict=True)
        return torch.cat([_loss(hidden @ weight_vh.t(), targets, group)[0] for hidden, targets in chunks])

    @staticmethod
    def backward(ctx: Any, dloss_t: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_th, weight_vh, targets_t = ctx.saved_tensors
        dhidden, dweight = [], torch.zeros_like(weight_vh, dtype=_wide(weight_vh[:0]).dtype)
        parts = (x.split(ctx.chunk_tokens) for x in (hidden_th, targets_t, dloss_t))
        for hidden, targets, dloss in zip(*parts, strict=True):
            _, softmax = _loss(hidden @ weight_vh.t(), targets, ctx.group)
            dlogits = _dlogits(softmax, targets, dloss, ctx.group).to(hidden.dtype)
            dhidden.append(dlogits @ weight_vh)
            dweight += dlogits.t() @ hidden
        return _reduced(torch.cat(dhidden), ctx.group), dweight.to(weight_vh.dtype), None, None, None
