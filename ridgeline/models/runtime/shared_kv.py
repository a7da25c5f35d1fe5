"""Cross-layer attention: layers without keys and values of their own take those that a layer below projects.

Legend: as in `ridgeline.models.runtime.attention`.

Source:
    arXiv 2405.12981; as in Hunyuan-Large, arXiv 2411.02265, section 2.1, each layer turns and norms the keys by itself.
"""

from typing import Any

import attrs
import torch
from megatron.core.transformer.transformer_layer import TransformerLayer

from ridgeline.core.model import Attention
from ridgeline.models.runtime.attention import RotaryAttention
from ridgeline.models.runtime.config import LayerConfig
from ridgeline.models.runtime.linears import column_parallel
from ridgeline.models.runtime.sequences import HandedKv, Sequences


class SharedKvAttention(RotaryAttention):
    """Queries of its own, keys and values of the nearest layer below that has them."""

    def __init__(self, config: LayerConfig, *args: Any, mixer: Attention, **kwargs: Any) -> None:
        super().__init__(config, *args, mixer=mixer, **kwargs)
        self.linear_q = column_parallel(
            self.config, self.config.hidden_size, self.query_projection_size, self.tp_group, bias=mixer.qkv_bias
        )

    def projected(self, hidden_states: torch.Tensor, handed: HandedKv | None) -> tuple[torch.Tensor, ...]:
        assert handed is not None
        assert handed.kv_sb2gd is not None, "planning holds a stage to begin with a layer that has its own"
        query, _ = self.linear_q(hidden_states)
        return query.unflatten(-1, (-1, self.hidden_size_per_attention_head)), *handed.kv_sb2gd.unbind(2)


class HandingLayer(TransformerLayer):
    """A layer that takes shared keys and values where Megatron-core hands it a context, and gives them on there."""

    def forward(
        self, *args: Any, packed_seq_params: Sequences, context: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The stream, and keys and values (s, b, 2, g, d) for the next layer.

        Args:
            args, kwargs: Of Megatron-core's layer.
            packed_seq_params: The microbatch.
            context: Keys and values that a layer below handed on.
        """
        handed = HandedKv(context)
        own = attrs.evolve(packed_seq_params, handed=handed)
        hidden, _ = super().forward(*args, packed_seq_params=own, **kwargs)
        return hidden, handed.kv_sb2gd  # pyright: ignore[reportReturnType]  a tensor wherever no graph is captured


def no_projection(*args: Any, **kwargs: Any) -> None:
    """Stands where Megatron-core builds the fused projection."""
