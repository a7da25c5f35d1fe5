"""The mask from which attention's compressed modes read theirs."""

import functools

import torch


@functools.cache
def template(device: torch.device) -> torch.Tensor:
    """What is masked above a diagonal, (2048, 2048), bool.

    One for all calls: every layer's backward keeps its mask, and a copy each would be 4 MiB a layer and microbatch.
    """
    return torch.ones(2048, 2048, dtype=torch.bool, device=device).triu_(1)
