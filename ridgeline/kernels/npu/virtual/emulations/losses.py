"""Cross entropy."""

import torch
from torch import Tensor


def cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    weight: None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    lse_square_scale_for_zloss: float = 0.0,
    return_zloss: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and log-probabilities in the dtype of the logits; a negative ignored index ignores nothing."""
    assert weight is None
    assert ignore_index < 0
    assert lse_square_scale_for_zloss == label_smoothing == 0.0
    assert not return_zloss
    assert bool(((target >= 0) & (target < input.shape[1])).all()), "targets must be classes"
    log_prob = input.double().log_softmax(-1)
    loss = -log_prob.gather(1, target.unsqueeze(1)).squeeze(1)
    reduced = {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction]
    empty = torch.empty(0, dtype=input.dtype)
    return reduced.to(input.dtype), log_prob.to(input.dtype), empty, empty.clone()


def cross_entropy_loss_backward(
    grad_loss: Tensor,
    log_prob: Tensor,
    target: Tensor,
    weight: None = None,
    grad_zloss: Tensor | None = None,
    lse_for_zloss: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    lse_square_scale_for_zloss: float = 0.0,
) -> Tensor:
    assert weight is None
    dlogits = log_prob.double().exp()
    dlogits[torch.arange(len(target)), target] -= 1
    scale = grad_loss.double() / (len(target) if reduction == "mean" else 1)
    return (dlogits * scale.reshape(-1, 1)).to(log_prob.dtype)
