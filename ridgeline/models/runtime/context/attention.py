"""Attention over a sequence that cp ranks share, as each of them calls it with its own part."""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import distributed

from ridgeline.models.runtime.config import LayerConfig
from ridgeline.models.runtime.context.ring import ring_attention
from ridgeline.models.runtime.context.ulysses import exchanging_heads
from ridgeline.models.runtime.kernels import Kernel, Kernels


def shared_attention(config: LayerConfig, kernels: Kernels, groups: ProcessGroupCollection) -> Kernel:
    """The op ``attention`` for queries, keys and values of this rank's positions, by the layout's algorithm.

    Lengths of documents, ``cu_seqlens``, are those of whole samples.
    """
    if groups.cp.size() == 1:
        return kernels["attention"]
    match config.cp_algorithm:
        case "ring":
            return _around(groups.cp, kernels)
        case "ulysses":
            return exchanging_heads(kernels["attention"], groups.cp, repeats_kv=config.repeat_kv)
        case "hybrid":
            inner, outer = groups.hcp
            return exchanging_heads(_around(outer, kernels), inner, repeats_kv=config.repeat_kv)
        case algorithm:
            raise AssertionError(algorithm)  # lowering refuses all others


def _around(group: distributed.ProcessGroup, kernels: Kernels) -> Kernel:
    """Attention by the ring of a group: causal, over samples that are one document each."""

    def attend(*inputs: torch.Tensor, scale: float, window: int | None, cu_seqlens: None) -> torch.Tensor:
        assert cu_seqlens is None, "lowering refuses packed documents"
        # A window is as long as samples, or planning refuses it.
        return ring_attention(*inputs, scale=scale, kernels=kernels, group=group)

    return attend
