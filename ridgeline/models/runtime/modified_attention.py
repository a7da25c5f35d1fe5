"""Softmax attention whose scores are more than products: linear biases, caps, sinks.

Legend: as in `ridgeline.models.runtime.attention`.
"""

import math
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule

from ridgeline.core.model import Attention
from ridgeline.kernels.documents import document_lengths
from ridgeline.kernels.masks import CAUSAL, window
from ridgeline.models.runtime.config import LayerConfig
from ridgeline.models.runtime.context.ulysses import exchanging_heads
from ridgeline.models.runtime.kernels import Kernel


class ModifiedCoreAttention(MegatronModule):
    """The core of an attention with ALiBi, a soft cap or sinks, by the op flash_attention."""

    def __init__(
        self,
        config: LayerConfig,
        *,
        mixer: Attention,
        scale: float,
        flash_attention: Kernel,
        pg_collection: ProcessGroupCollection,
        **unused: Any,
    ) -> None:
        super().__init__(config)
        self.heads = mixer.heads // pg_collection.tp.size()
        self.flash_attention = flash_attention
        self.cp_group, self.repeats_kv = pg_collection.cp, config.repeat_kv
        self.scale = scale
        self.softcap = mixer.softcap
        self.mask = CAUSAL if mixer.window is None else window(mixer.window)
        self.softmax_offset = (
            torch.nn.Parameter(torch.empty(self.heads, dtype=config.params_dtype)) if mixer.sinks else None
        )
        # No buffer: those are rounded with the weights.
        first = pg_collection.tp.rank() * self.heads
        own = slice(first, first + self.heads)
        self.slopes = torch.tensor(alibi_slopes(mixer.heads)[own]) if mixer.positions == "alibi" else None

    def forward(
        self,
        query_sbnd: torch.Tensor,
        key_sbgd: torch.Tensor,
        value_sbgd: torch.Tensor,
        cu_seqlens: torch.Tensor | None,
    ) -> torch.Tensor:
        """The context, (s, b, n*d)."""
        attend = self._of_samples
        if self.cp_group.size() > 1:
            attend = exchanging_heads(attend, self.cp_group, repeats_kv=self.repeats_kv)
        return attend(query_sbnd, key_sbgd, value_sbgd, cu_seqlens=cu_seqlens).flatten(2)

    def _of_samples(
        self,
        query_sbnd: torch.Tensor,
        key_sbgd: torch.Tensor,
        value_sbgd: torch.Tensor,
        *,
        cu_seqlens: torch.Tensor | None,
    ) -> torch.Tensor:
        """The context, (s, b, n, d), of whole samples: of all heads of this rank, or of its part of them under cp."""
        s, b, heads, _ = query_sbnd.shape
        inputs, options = (query_sbnd, key_sbgd, value_sbgd), {}
        if cu_seqlens is None:
            layout, inputs = "SBH", tuple(x.flatten(2) for x in inputs)
        else:
            layout, inputs = "TND", tuple(x.transpose(0, 1).flatten(0, 1) for x in inputs)
            lengths = document_lengths(cu_seqlens.tolist(), size=s, samples=b)
            options = {"q_lengths": lengths, "kv_lengths": lengths}
        first = self.cp_group.rank() * heads
        own = slice(first, first + heads)
        context = self.flash_attention(
            *inputs,
            layout=layout,
            heads=heads,
            scale=self.scale,
            mask=self.mask,
            sinks_n=None if self.softmax_offset is None else self.softmax_offset[own],
            alibi_n=None if self.slopes is None else self.slopes[own],
            softcap=self.softcap,
            **options,
        )
        if cu_seqlens is None:
            return context.unflatten(2, (heads, -1))
        return context.unflatten(0, (b, s)).transpose(0, 1)


def alibi_slopes(heads: int) -> list[float]:
    """How much each head's scores fall with a position's distance.

    Source:
        arXiv 2108.12409, section 3, and its published code for numbers of heads that are no power of two.

    Example:
        >>> alibi_slopes(4)
        [0.25, 0.0625, 0.015625, 0.00390625]
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    between = [2.0 ** (-4 * (head + 1) / power) for head in range(0, 2 * power, 2)]
    return slopes + between[: heads - power]
