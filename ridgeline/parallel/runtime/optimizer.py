"""One update: Megatron-core's optimizer, driven so that a step with a bad gradient changes nothing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer import ChainedOptimizer


@attrs.frozen
class Update:
    """What an update did: the gradients' norm before clipping, and whether it was skipped for not being finite."""

    grad_norm: float
    skipped: bool


def build_optimizer(chunks: Sequence[DistributedDataParallel], fields: Mapping[str, Any]) -> ChainedOptimizer:
    """Adam over all chunks, in groups with weight decay (matrices) and without (biases and norms)."""
    optimizer = get_megatron_optimizer(OptimizerConfig(**fields), list(chunks), use_gloo_process_groups=False)
    assert isinstance(optimizer, ChainedOptimizer)
    for group in optimizer.param_groups:
        group["foreach"] = False  # a tensor at a time: all at once makes temporaries as large as all weights
    return optimizer


@torch.no_grad()
def update(optimizer: ChainedOptimizer, *, lr: float, weight_decay: float, clip_grad: float) -> Update:
    """Clip the gradients and update the weights, unless the norm of the gradients is infinite or not a number.

    Args:
        optimizer: With gradients reduced.
        lr: The rate of this update.
        weight_decay: Of the groups that decay.
        clip_grad: Greatest norm of all gradients together; 0 leaves them as they are.

    Source:
        megatron-core 0.16.1, optimizer/optimizer.py, ``ChainedOptimizer.step``: the same calls in the same order.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay * group["wd_mult"]
    optimizer.prepare_grads()
    grad_norm = optimizer.get_grad_norm()
    if not math.isfinite(grad_norm):
        return Update(grad_norm, skipped=True)
    if clip_grad > 0.0:
        for chained in optimizer.chained_optimizers:
            parameters: list[torch.Tensor] = [*chained.get_parameters()]
            if parameters:
                clip_grad_by_total_norm_fp32(parameters, max_norm=clip_grad, total_norm=grad_norm)
    optimizer.step_with_ready_grads()
    return Update(grad_norm, skipped=False)
