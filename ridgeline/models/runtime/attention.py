"""Softmax attention as Megatron-core builds it, each part calling the kernel that the plan chose.

Legend: ``s`` = sequence, ``b`` = microbatch, ``n`` = query heads, ``g`` = key-value heads, ``d`` = head_dim; each the
part that this rank holds.
"""

import copy
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.module import MegatronModule

from ridgeline.core.model import Attention
from ridgeline.models.runtime.config import LayerConfig
from ridgeline.models.runtime.context.attention import shared_attention
from ridgeline.models.runtime.head_gates import HeadGates
from ridgeline.models.runtime.kernels import Kernel, Kernels
from ridgeline.models.runtime.norms import LaterNorm
from ridgeline.models.runtime.sequences import Handed, Sequences, turn_of


class CoreAttention(MegatronModule):
    """Softmax attention between the projections: causal, within a window and within documents."""

    def __init__(
        self,
        config: LayerConfig,
        *,
        scale: float,
        window: int | None,
        kernels: Kernels,
        pg_collection: ProcessGroupCollection,
        **unused: Any,
    ) -> None:
        super().__init__(config)
        self.scale = scale
        self.window = window
        self.attention = shared_attention(config, kernels, pg_collection)

    def forward(
        self,
        query_sbnd: torch.Tensor,
        key_sbgd: torch.Tensor,
        value_sbgd: torch.Tensor,
        cu_seqlens: torch.Tensor | None,
    ) -> torch.Tensor:
        """The context, (s, b, n*d)."""
        context_sbnd = self.attention(
            query_sbnd, key_sbgd, value_sbgd, scale=self.scale, window=self.window, cu_seqlens=cu_seqlens
        )
        return context_sbnd.reshape(*context_sbnd.shape[:2], -1)


class RotaryAttention(SelfAttention):
    """Megatron-core's self-attention with a forward of its own: rotary positions are the rope op's.

    ``packed_seq_params`` carries the `Sequences` of the microbatch: it is the argument that Megatron-core hands through
    to every layer, whatever the schedule or the recomputation.
    """

    def __init__(self, config: LayerConfig, *args: Any, mixer: Attention, rotate: Kernel | None, **kwargs: Any) -> None:
        super().__init__(_config_of(mixer, config), *args, **kwargs)
        self.turn = turn_of(mixer)
        self.interleaved = mixer.rope.interleaved
        self.gated = mixer.gate == "element"
        self.linear_gate = None
        if mixer.gate == "head":
            self.linear_gate = HeadGates(self.config, heads=mixer.heads, group=self.tp_group)
        self.norms_turned = mixer.qk_norm and mixer.qk_norm_after_rope
        self.rotate = rotate

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  fewer cases than upstream's 17 arguments
        self, hidden_states: torch.Tensor, attention_mask: None = None, *, packed_seq_params: Sequences, **unused: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value, *gate = self.projected(hidden_states, packed_seq_params.handed)
        if self.turn is not None and self.rotate is not None:
            table = packed_seq_params.tables[self.turn]
            query = self.rotate(query, table.cos_sb1d, table.sin_sb1d, interleaved=self.interleaved)
            key = self.rotate(key, table.cos_sb1d, table.sin_sb1d, interleaved=self.interleaved)
        if self.norms_turned:
            assert isinstance(self.q_layernorm, LaterNorm)
            assert isinstance(self.k_layernorm, LaterNorm)
            query, key = self.q_layernorm.normed(query), self.k_layernorm.normed(key)
        if packed_seq_params.cache is not None:
            key, value = packed_seq_params.cache.extend(self.layer_number, key, value)  # pyright: ignore[reportArgumentType]
        context = attend(
            self.core_attention,
            (query, key, value, packed_seq_params.cu_seqlens),
            recompute=self.checkpoint_core_attention and self.training,
        )
        if gate:
            context = context * torch.sigmoid(gate[0].reshape(context.shape))
        if self.linear_gate is not None:
            context_sbnd = context.unflatten(-1, (-1, self.hidden_size_per_attention_head))
            context = (context_sbnd * self.linear_gate(hidden_states).unsqueeze(-1)).flatten(2)
        return self.linear_proj(context)

    def projected(self, hidden_states: torch.Tensor, handed: Handed | None) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, (s, b, heads, d) each, and the gate where there is one."""
        query, key, value, *gate = self.get_query_key_value_tensors(hidden_states, output_gate=self.gated)  # pyright: ignore[reportAssignmentType]  split
        if handed is not None:
            handed.shared = torch.stack((key, value), dim=2)  # pyright: ignore[reportArgumentType]  split, as above
        return query, key, value, *gate  # pyright: ignore[reportReturnType]


def attend(core: Any, inputs: tuple[Any, ...], *, recompute: bool) -> torch.Tensor:
    """The core of attention, saved as a whole or computed again in the backward."""
    return tensor_parallel.checkpoint(core, False, *inputs) if recompute else core(*inputs)


def _config_of(mixer: Attention, config: LayerConfig) -> LayerConfig:
    """The chunk's config, which Megatron-core reads the sizes of all attention from, with those of this one."""
    own = copy.copy(config)
    own.num_attention_heads = mixer.heads
    own.num_query_groups = mixer.kv_heads
    own.kv_channels = mixer.head_dim
    own.add_qkv_bias = mixer.qkv_bias
    own.attention_output_gate = mixer.gate == "element"
    return own
