"""The learning rate of each step, as a function of the step alone: nothing to save, nothing to restore."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ridgeline.core.job import ConstantLr, Optimizer, WsdLr


def lr_at(step: int, optimizer: Optimizer, *, steps: int) -> float:
    """The rate that the update of a step uses.

    Args:
        step: Updates made before this one, 0 for the first; with warmup, the first is made at rate 0.
        optimizer: Peak, minimum, warmup and shape.
        steps: Of the whole run, where a decay ends unless it says otherwise.

    Source:
        megatron-core 0.16.1, optimizer_param_scheduler.py, ``OptimizerParamScheduler.get_lr``.

    Example:
        >>> adam = Optimizer(lr=1.0, min_lr=0.2, warmup_steps=10)
        >>> [round(lr_at(step, adam, steps=110), 3) for step in (0, 5, 10, 60, 110, 200)]
        [0.0, 0.5, 1.0, 0.6, 0.2, 0.2]
    """
    schedule, warmup = optimizer.lr_schedule, optimizer.warmup_steps
    if warmup > 0 and step <= warmup:
        return optimizer.lr * step / warmup
    if isinstance(schedule, ConstantLr):
        return optimizer.lr
    end = schedule.decay_steps or steps
    if step > end:
        return optimizer.min_lr
    if isinstance(schedule, WsdLr):
        begin = end - schedule.anneal_steps
        share = STYLES[schedule.style](max(0, step - begin) / schedule.anneal_steps)
    else:
        share = STYLES[schedule.kind]((step - warmup) / (end - warmup))
    return optimizer.min_lr + share * (optimizer.lr - optimizer.min_lr)


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    return 0.5 * (math.cos(math.pi * progress) + 1.0)


def _exponential(progress: float) -> float:
    return 2.0 * 0.5**progress - 1.0


def _minus_sqrt(progress: float) -> float:
    return 1.0 - math.sqrt(progress)


STYLES: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {"linear": _linear, "cosine": _cosine, "exponential": _exponential, "minus_sqrt": _minus_sqrt}
)
"""How much of the way from the minimum to the peak is left after a share of the decay, both 0 .. 1."""
