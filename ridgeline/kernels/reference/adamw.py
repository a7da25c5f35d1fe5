"""One AdamW step of one tensor, in plain torch."""

import torch
from torch import Tensor


def adamw(
    param: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Update a tensor and the running averages of its gradient in place.

    Args:
        param: Any shape, fp32 or wider.
        grad: The same shape, float.
        mean: The same shape: fp32, or bf16, which is widened for the step and rounded to nearest after it.
        square: The same.
        step: Of this update, >= 1.
        lr: Learning rate.
        beta1: Decay of ``mean``, 0 <= beta1 < 1.
        beta2: Decay of ``square``, 0 <= beta2 < 1.
        eps: > 0.
        weight_decay: >= 0, taken from the parameter itself.

    Source:
        arXiv 1711.05101, algorithm 2, with the step size of torch.optim.AdamW.
    """
    wide = grad.to(param.dtype)
    new_mean = mean.to(param.dtype) * beta1 + wide * (1 - beta1)
    new_square = square.to(param.dtype) * beta2 + wide.square() * (1 - beta2)
    denominator = (new_square / (1 - beta2**step)).sqrt_().add_(eps)
    param.mul_(1 - lr * weight_decay).sub_(torch.div(new_mean, denominator).mul_(lr / (1 - beta1**step)))
    mean.copy_(new_mean)
    square.copy_(new_square)
