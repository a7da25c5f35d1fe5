"""Cross-layer attention: layers without keys and values of their own take those that a layer below projects.

Legend: as in `ridgeline.models.runtime.attention`.

Source:
    arXiv 2405.12981; as in Hunyuan-Large, arXiv 2411.02265, section 2.1, each layer turns and norms the keys by itself.
"""

from typing import Any

import torch

from ridgeline.core.model import Attention
from ridgeline.models.runtime.attention import RotaryAttention
from ridgeline.models.runtime.config import LayerConfig
from ridgeline.models.runtime.linears import column_parallel
from ridgeline.models.runtime.sequences import Handed


class SharedKvAttention(RotaryAttention):
    """Queries of its own, keys and values of the nearest layer below that has them."""

    def __init__(self, config: LayerConfig, *args: Any, mixer: Attention, **kwargs: Any) -> None:
        super().__init__(config, *args, mixer=mixer, **kwargs)
        self.linear_q = column_parallel(
            self.config, self.config.hidden_size, self.query_projection_size, self.tp_group, bias=mixer.qkv_bias
        )

    def projected(self, hidden_states: torch.Tensor, handed: Handed | None) -> tuple[torch.Tensor, ...]:
        assert handed is not None
        assert handed.shared is not None, "planning holds a stage to begin with a layer that has its own"
        query, _ = self.linear_q(hidden_states)
        return query.unflatten(-1, (-1, self.hidden_size_per_attention_head)), *handed.shared.unbind(2)


def no_projection(*args: Any, **kwargs: Any) -> None:
    """Stands where Megatron-core builds the fused projection."""
