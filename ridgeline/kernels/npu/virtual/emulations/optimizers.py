"""Optimizer steps."""

from collections.abc import Sequence

from torch import Tensor


def apply_adam_w(
    beta1_power: float,
    beta2_power: float,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    grad: Tensor,
    max_grad_norm: Tensor | None,
    amsgrad: bool | None,
    maximize: bool | None,
    *,
    out: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Updates (var, m, v) in place; the powers are those before this step, which the op multiplies once more."""
    assert max_grad_norm is None
    assert not amsgrad
    assert not maximize
    var, m, v = out
    gradient = grad.double()
    mean = m.double() * beta1 + gradient * (1 - beta1)
    square = v.double() * beta2 + gradient.square() * (1 - beta2)
    denominator = (square / (1 - beta2_power * beta2)).sqrt() + epsilon
    step = lr / (1 - beta1_power * beta1) * mean / denominator
    var.copy_(var.double() * (1 - lr * weight_decay) - step)
    m.copy_(mean)
    v.copy_(square)
    return out
