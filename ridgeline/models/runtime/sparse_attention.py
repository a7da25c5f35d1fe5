"""Latent attention that sees the positions an indexer chooses: DeepSeek-V3.2's and GLM-5's.

Legend: ``s`` = queries, ``t`` = keys, ``b`` = microbatch, ``n`` = heads of this rank, ``l`` = latent size, ``r`` =
elements of a head that turn, ``v`` = a value head's size, ``k`` = chosen positions.
"""

from functools import partial
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.transformer_config import TransformerConfig

from ridgeline.core.model import LatentAttention
from ridgeline.models.runtime.attention import attend
from ridgeline.models.runtime.indexer import Indexer
from ridgeline.models.runtime.indexer_loss import attended, indexer_loss
from ridgeline.models.runtime.kernels import Kernels
from ridgeline.models.runtime.latent_attention import LatentSelfAttention, latent_scale
from ridgeline.models.runtime.sequences import Sequences, each_document


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
        sequences = packed_seq_params
        query_latent = self.query_input(hidden_states)
        # The indexer learns from its own loss alone, and its loss changes nothing else.
        index = self.core_attention.indexer(hidden_states.detach(), query_latent.detach(), sequences)
        index_query, index_key, index_weights = index
        plain, query_rope = self.queries(query_latent, sequences)
        latent, turned = (self.whole(x) for x in self.latents(hidden_states))
        keys = torch.cat((latent.unsqueeze(2), self.turn(turned.unsqueeze(2), sequences)), dim=-1)
        if sequences.cache is not None:
            keys, index_key = sequences.cache.extend(self.layer_number, keys, index_key)
        assert self.linear_kv_up_proj.weight is not None
        key_up, value_up = self.linear_kv_up_proj.weight.unflatten(0, (self.heads, -1)).split(self.up_parts, dim=1)
        query = torch.einsum("sbnp,npl->sbnl", plain, key_up)
        latent, key_rope = keys.squeeze(2).split((latent.shape[-1], turned.shape[-1]), dim=-1)
        inputs = (query, query_rope, latent, key_rope, index_query, index_key.squeeze(2), index_weights)
        inputs = (*inputs, sequences.cu_seqlens)
        context = attend(self.core_attention, inputs, recompute=self.recomputes and self.training)
        return self.linear_proj(torch.einsum("sbnl,nvl->sbnv", context, value_up).flatten(2))


class SparseCoreAttention(MegatronModule):
    """The choice of positions, and attention to them.

    Attributes:
        lost: The sum over microbatches of a step so far of the indexer's mean loss, unweighted.
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
        self.indexer = Indexer(config, mixer=mixer, kernels=kernels, pg_collection=pg_collection)
        self.lost = torch.zeros(())

    def forward(self, *parts_sb: torch.Tensor | None) -> torch.Tensor:
        """The context, (s, b, n, l).

        Args:
            parts_sb: Queries (s, b, n, l) and (s, b, n, r), latents (t, b, l), turned keys (t, b, r); of the indexer
                queries, keys and weights; where documents end.
        """
        *tensors_sb, cu_seqlens = parts_sb
        tensors_bs = [x.transpose(0, 1) for x in tensors_sb if x is not None]
        mix = partial(self._mix, tokens=tensors_bs[0].shape[:2].numel())
        return each_document(mix, *tensors_bs, cu_seqlens=cu_seqlens).transpose(0, 1)

    def _mix(
        self,
        query: torch.Tensor,
        query_rope: torch.Tensor,
        latent: torch.Tensor,
        key_rope: torch.Tensor,
        index_query: torch.Tensor,
        index_key: torch.Tensor,
        index_weights: torch.Tensor,
        *,
        tokens: int,
    ) -> torch.Tensor:
        """The context (b, s, n, l) of one document a sample, of ``tokens`` in the microbatch."""
        learns = self.coefficient > 0 and self.training and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            indices, scores = self.choose(index_query, index_key, index_weights, topk=min(self.topk, latent.shape[1]))
        inputs, turned = (query, latent, indices), {"query_rope_bsnr": query_rope, "key_rope_btr": key_rope}
        context = self.attention(*inputs, **turned, scale=self.scale)
        if not learns:
            return context
        target = attended(*inputs, **turned, scale=self.scale, tp_group=self.tp_group)
        loss = indexer_loss(scores, target)
        with torch.no_grad():
            self.lost += loss / tokens
        loss = self.coefficient * loss
        # Megatron-core divides all gradients by the step's tokens in the end, or this loss by its microbatches.
        loss = loss if self.config.calculate_per_token_loss else loss / tokens
        return MoEAuxLossAutoScaler.apply(context, loss)  # pyright: ignore[reportReturnType]
