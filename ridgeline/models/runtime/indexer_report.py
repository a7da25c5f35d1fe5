"""How far indexers were from where attention looks, in a step, over all ranks."""

from collections.abc import Iterator

import torch
from torch import distributed

from ridgeline.models.runtime.build import Built
from ridgeline.models.runtime.sparse_attention import SparseCoreAttention


@torch.no_grad()
def indexer_loss_of_step(built: Built) -> float | None:
    """The mean over layers and microbatches of the loss of indexers, unweighted; None where none is trained.

    Every rank calls it.
    """
    if not built.config.dsa_indexer_loss_coeff:
        return None
    lost = torch.zeros(2, device=built.device)
    for core in _cores(built):
        lost += torch.stack((core.lost, torch.ones_like(core.lost)))
    distributed.all_reduce(lost)
    total, layers = lost.tolist()
    return total / (layers * built.program.data.num_microbatches)


def forget_indexer_loss(built: Built) -> None:
    """Begin adding up anew."""
    for core in _cores(built):
        core.lost.zero_()


def _cores(built: Built) -> Iterator[SparseCoreAttention]:
    for chunk in built.chunks:
        cores = (module for module in chunk.modules() if isinstance(module, SparseCoreAttention))
        yield from (core for core in cores if core.indexer is not None)
