"""Latent attention that sees the positions an indexer chooses: DeepSeek-V3.2's and GLM-5's.

Legend: ``s`` = queries, ``t`` = keys, ``b`` = microbatch, ``n`` = heads of this rank, ``l`` = latent size, ``r`` =
elements of a head that turn, ``v`` = a value head's size, ``k`` = chosen positions.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.transformer_config import TransformerConfig

from ridgeline.core.model import LatentAttention
from ridgeline.models.runtime.attention import attend
from ridgeline.models.runtime.indexer import Indexer, chosen_of
from ridgeline.models.runtime.indexer_loss import attended, indexer_loss
from ridgeline.models.runtime.kernels import Kernels
from ridgeline.models.runtime.latent_attention import LatentSelfAttention, latent_scale
from ridgeline.models.runtime.sequences import Sequences, each_document


class Index(NamedTuple):
    """Of an indexer: queries and weights of heads of this rank's tokens, keys of all, (s or t, b, ...)."""

    query: torch.Tensor
    key: torch.Tensor
    weights: torch.Tensor


class Chosen(NamedTuple):
    """The positions that each query sees, (b, s, k), and of this rank's tokens their scores; None unless it learns."""

    indices_bsk: torch.Tensor
    scores_bsk: torch.Tensor | None


class SparseLatentAttention(LatentSelfAttention):
    """Attention of a `LatentAttention` with an indexer, as attention over the latents themselves.

    The projection up to keys is applied to the queries, and that up to values to what was attended to: all heads share
    the latents of the chosen positions.

    Source:
        DeepSeek-V3.2, arXiv 2512.02556, section 2.1 and appendix A.
    """

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: None = None, *, packed_seq_params: Sequences, **unused: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What attention adds to the stream, (s or s/tp, b, hidden), and no bias."""
        sequences, core = packed_seq_params, self.core_attention
        sizes = (self.mixer.kv_lora_rank, self.mixer.rope_head_dim)
        query_latent = self.query_input(hidden_states)
        index = core.index(hidden_states, query_latent, sequences)
        plain, query_rope = self.queries(query_latent, sequences)
        latent, turned = self.whole(torch.cat(self.latents(hidden_states), dim=-1)).split(sizes, dim=-1)
        latent, key_rope = latent.unsqueeze(2), self.turn(turned.unsqueeze(2), sequences)
        if sequences.cache is not None:
            keys = torch.cat((latent, key_rope), dim=-1)
            keys, index_key = sequences.cache.extend(self.layer_number, keys, index.key if index else keys[..., :0])
            latent, key_rope = keys.split(sizes, dim=-1)
            index = index and index._replace(key=index_key)
        chosen = core.chosen(index, sequences)
        assert self.linear_kv_up_proj.weight is not None
        key_up, value_up = self.linear_kv_up_proj.weight.unflatten(0, (self.heads, -1)).split(self.up_parts, dim=1)
        query = torch.einsum("sbnp,npl->sbnl", plain, key_up)
        parts_bs = [x.transpose(0, 1) for x in (query, query_rope, latent.squeeze(2), key_rope.squeeze(2))]
        inputs = (*parts_bs, chosen.indices_bsk, sequences.cu_seqlens)
        context_bsnl = attend(core, inputs, recompute=self.recomputes and self.training)
        if chosen.scores_bsk is not None:
            context_bsnl = core.learning(context_bsnl, chosen.scores_bsk, inputs)
        context_bsnv = torch.einsum("bsnl,nvl->bsnv", context_bsnl, value_up)
        return self.linear_proj(context_bsnv.transpose(0, 1).flatten(2))


class SparseCoreAttention(MegatronModule):
    """The choice of positions or that of a layer below, attention to them, and what the choice learns from attention.

    Attributes:
        lost: The sum over microbatches of a step so far of the indexer's mean loss over this rank's tokens, unweighted.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        mixer: LatentAttention,
        kernels: Kernels,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__(config)
        assert mixer.indexer is not None
        self.topk, self.scale, self.tp_group = mixer.indexer.topk, latent_scale(mixer), pg_collection.tp
        self.choose, self.attention = kernels["lightning_indexer"], kernels["sparse_attention"]
        self.coefficient = config.dsa_indexer_loss_coeff or 0.0
        self.indexer = None
        if not mixer.indexer.shared:
            self.indexer = Indexer(config, mixer=mixer, kernels=kernels, pg_collection=pg_collection)
        self.lost = torch.zeros(())

    @property
    def learns(self) -> bool:
        """Whether this forward is one that an indexer learns from."""
        return self.coefficient > 0 and self.training and torch.is_grad_enabled()

    def index(self, hidden: torch.Tensor, query_latent: torch.Tensor, sequences: Sequences) -> Index | None:
        """What this layer's own indexer gives; it learns from its own loss alone, and its loss changes nothing else."""
        if self.indexer is None:
            return None
        with torch.set_grad_enabled(self.learns):
            return Index(*self.indexer(hidden.detach(), query_latent.detach(), sequences))

    def chosen(self, index: Index | None, sequences: Sequences) -> Chosen:
        """The choice by an index, handed on to layers that share it; without one, that of a layer below.

        Under sp each rank chooses for its own tokens, and is told the choice for all.
        """
        handed = sequences.handed
        if index is None:
            assert handed is not None
            assert handed.shared is not None, "planning holds a stage to begin with a layer that has its own"
            return Chosen(handed.shared, None)
        query, key, weights = index
        begin = self.tp_group.rank() * len(query) if self.config.sequence_parallel else len(key) - len(query)
        tensors_bs = (x.transpose(0, 1) for x in (query, key.squeeze(2), weights))
        options = {"begin": begin, "topk": min(self.topk, len(key)), "cu_seqlens": sequences.cu_seqlens}
        with torch.set_grad_enabled(self.learns):
            indices, scores = chosen_of(self.choose, *tensors_bs, **options)
        if self.config.sequence_parallel:
            whole = gather_from_sequence_parallel_region(indices.transpose(0, 1).contiguous(), group=self.tp_group)
            indices = whole.transpose(0, 1).contiguous()
        if handed is not None:
            handed.shared = indices
        return Chosen(indices, scores if self.learns else None)

    def forward(
        self,
        query_bsnl: torch.Tensor,
        query_rope_bsnr: torch.Tensor,
        latent_btl: torch.Tensor,
        key_rope_btr: torch.Tensor,
        indices_bsk: torch.Tensor,
        cu_seqlens: torch.Tensor | None,
    ) -> torch.Tensor:
        """The context, (b, s, n, l)."""

        parts = (query_bsnl, query_rope_bsnr, latent_btl, key_rope_btr, indices_bsk)
        return each_document(self._attended, *parts, cu_seqlens=cu_seqlens)

    def _attended(
        self,
        query: torch.Tensor,
        query_rope: torch.Tensor,
        latent: torch.Tensor,
        key_rope: torch.Tensor,
        indices: torch.Tensor,
    ) -> torch.Tensor:
        turned = {"query_rope_bsnr": query_rope, "key_rope_btr": key_rope}
        return self.attention(query, latent, indices, **turned, scale=self.scale)

    def learning(self, context_bsnl: torch.Tensor, scores_bsk: torch.Tensor, inputs: tuple[Any, ...]) -> torch.Tensor:
        """The context, whose backward is also that of the indexer's loss.

        Args:
            context_bsnl: As `forward` gives it.
            scores_bsk: Of the positions chosen for this rank's tokens.
            inputs: What `forward` was given.
        """
        *parts, cu_seqlens = inputs
        target_bsk = each_document(partial(attended, scale=self.scale), *parts, cu_seqlens=cu_seqlens)
        tokens = target_bsk.shape[:2].numel()
        if self.config.sequence_parallel:
            whole = target_bsk.transpose(0, 1).contiguous()
            target_bsk = reduce_scatter_to_sequence_parallel_region(whole, self.tp_group).transpose(0, 1)
        loss = indexer_loss(scores_bsk, target_bsk)
        with torch.no_grad():
            self.lost += loss / scores_bsk.shape[:2].numel()
        loss = self.coefficient * loss
        # Megatron-core divides all gradients by the step's tokens in the end, or this loss by its microbatches.
        loss = loss if self.config.calculate_per_token_loss else loss / tokens
        return MoEAuxLossAutoScaler.apply(context_bsnl, loss)  # pyright: ignore[reportReturnType]
