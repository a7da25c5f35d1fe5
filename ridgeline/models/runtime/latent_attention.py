"""Multi-head latent attention: keys and values are drawn up from one small latent of each token.

Legend: ``s`` = sequence, ``b`` = microbatch, ``n`` = heads of this rank, ``r`` = elements of a head that turn.
"""

from functools import partial
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig

from ridgeline.core.model import LatentAttention, YarnRope
from ridgeline.models.runtime.attention import attend
from ridgeline.models.runtime.kernels import Kernel
from ridgeline.models.runtime.linears import ReplicatedLinear, column_parallel, row_parallel
from ridgeline.models.runtime.rope import yarn_temperature
from ridgeline.models.runtime.sequences import Sequences, turn_of


class LatentSelfAttention(MegatronModule):
    """Attention of a `LatentAttention`, its heads split over tp and its latents whole on every tp rank.

    Parameters carry Megatron-core's names (``multi_latent_attention.py``). Upstream's own module splits the down
    projections over tp and gathers what they give; whole ones cost no communication.

    Source:
        DeepSeek-V2, arXiv 2405.04434, section 2.1.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        mixer: LatentAttention,
        layer_number: int,
        norm: ModuleSpec,
        core_attention: Any,
        rotate: Kernel,
        pg_collection: ProcessGroupCollection,
        **unused: Any,
    ) -> None:
        super().__init__(config)
        self.mixer = mixer
        self.layer_number = layer_number
        self.rotate = rotate
        self.heads = mixer.heads // pg_collection.tp.size()
        self.up_parts = (mixer.nope_head_dim, mixer.v_head_dim)
        self.recomputes = config.recompute_granularity == "selective" and "core_attn" in (
            config.recompute_modules or ()
        )
        hidden, rank = config.hidden_size, mixer.q_lora_rank
        self.q_scale = (hidden / rank) ** 0.5 if mixer.latent_scale and rank else 1.0
        self.kv_scale = (hidden / mixer.kv_lora_rank) ** 0.5 if mixer.latent_scale else 1.0

        split = partial(column_parallel, config, group=pg_collection.tp)

        def normalised(size: int) -> torch.nn.Module:
            module = build_module(norm, config=config, hidden_size=size, eps=mixer.norm_eps or config.layernorm_epsilon)
            assert isinstance(module, torch.nn.Module)
            return module

        if rank is None:
            self.linear_q_proj = split(hidden, mixer.heads * mixer.qk_head_dim)
        else:
            self.linear_q_down_proj = ReplicatedLinear(config, hidden, rank)
            self.q_layernorm = normalised(rank)
            self.linear_q_up_proj = split(rank, mixer.heads * mixer.qk_head_dim)
        self.linear_kv_down_proj = ReplicatedLinear(config, hidden, mixer.kv_lora_rank + mixer.rope_head_dim)
        self.kv_layernorm = normalised(mixer.kv_lora_rank)
        self.linear_kv_up_proj = split(mixer.kv_lora_rank, mixer.heads * (mixer.nope_head_dim + mixer.v_head_dim))
        self.core_attention = core_attention(config, pg_collection=pg_collection)
        self.linear_proj = row_parallel(config, mixer.heads * mixer.v_head_dim, hidden, pg_collection.tp)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: None = None, *, packed_seq_params: Sequences, **unused: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What attention adds to the stream, (s or s/tp, b, hidden), and no bias."""
        sequences = packed_seq_params
        plain, own = self.queries(self.query_input(hidden_states), sequences)
        latent, turned = self.latents(hidden_states)
        key_value, _ = self.linear_kv_up_proj(latent)
        key, value = key_value.unflatten(-1, (self.heads, -1)).split(self.up_parts, dim=-1)
        turned = self.turn(self.whole(turned).unsqueeze(2), sequences).expand(-1, -1, self.heads, -1)
        query, key = torch.cat((plain, own), dim=-1), torch.cat((key, turned), dim=-1)
        if sequences.cache is not None:
            key, value = sequences.cache.extend(self.layer_number, key, value)
        inputs = (query, key, value, sequences.cu_seqlens)
        return self.linear_proj(attend(self.core_attention, inputs, recompute=self.recomputes and self.training))

    def query_input(self, hidden: torch.Tensor) -> torch.Tensor:
        """What queries are projected from: their latent, normalised, or the hidden state itself."""
        return hidden if self.mixer.q_lora_rank is None else self.q_layernorm(self.linear_q_down_proj(hidden))

    def queries(self, query_input: torch.Tensor, sequences: Sequences) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each head the part without positions and the turned one, (s, b, n, ...)."""
        if self.mixer.q_lora_rank is None:
            query, _ = self.linear_q_proj(query_input)
        else:
            query, _ = self.linear_q_up_proj(_scaled(query_input, self.q_scale))
        plain, own = query.unflatten(-1, (self.heads, -1)).split(
            (self.mixer.nope_head_dim, self.mixer.rope_head_dim), dim=-1
        )
        return plain, self.turn(own, sequences)

    def latents(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of this rank's tokens what keys and values are drawn from, and the part of the keys that is still to turn."""
        mixer = self.mixer
        latent, turned = self.linear_kv_down_proj(hidden).split((mixer.kv_lora_rank, mixer.rope_head_dim), dim=-1)
        return _scaled(self.kv_layernorm(latent), self.kv_scale), turned

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """What all heads of all tp ranks read, of every token: its gradient is the sum over them."""
        if self.config.sequence_parallel:
            return gather_from_sequence_parallel_region(x)
        return copy_to_tensor_model_parallel_region(x)

    def turn(self, x_sbnr: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        """Elements of heads, turned by their positions."""
        turn = turn_of(self.mixer)
        assert turn is not None
        table = sequences.tables[turn]
        return self.rotate(x_sbnr, table.cos_sb1d, table.sin_sb1d, interleaved=self.mixer.rope.interleaved)


def _scaled(latent: torch.Tensor, scale: float) -> torch.Tensor:
    return latent if scale == 1.0 else latent * scale


def latent_scale(mixer: LatentAttention) -> float:
    """What scores are multiplied by; YaRN's temperature for long contexts enters twice, for queries and for keys.

    Source:
        huggingface/transformers 5.23, ``DeepseekV3Attention``.
    """
    scale, scaling = mixer.qk_head_dim**-0.5, mixer.rope.scaling
    if isinstance(scaling, YarnRope) and scaling.mscale_all_dim:
        scale *= yarn_temperature(scaling.factor, scaling.mscale_all_dim) ** 2
    return scale
