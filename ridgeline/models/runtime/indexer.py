"""DeepSeek's lightning indexer: cheap heads whose scores say which positions attention sees.

Legend: ``s`` = queries of this rank, ``t`` = keys, ``b`` = microbatch, ``n`` = heads of the indexer, ``d`` = their
head_dim, ``k`` = chosen positions.
"""

from itertools import accumulate, pairwise

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from ridgeline.core.model import LatentAttention
from ridgeline.kernels.documents import document_lengths
from ridgeline.models.runtime.kernels import Kernel, Kernels
from ridgeline.models.runtime.linears import ReplicatedLinear
from ridgeline.models.runtime.norms import LayerNorm
from ridgeline.models.runtime.sequences import Sequences, indexer_turn

NORM_EPS = 1e-6
"""Of its keys, whatever a config gives the other norms."""


class Indexer(MegatronModule):
    """The projections of an `Indexer`, whole on every tp rank; under sp each rank chooses for its own tokens.

    Its parameters carry Megatron-core's names (``experimental_attention_variant/dsa.py``). DeepSeek's own code turns
    queries and keys by a Hadamard matrix and rounds them to 8 bits; the one changes no product, the other is left out.

    Source:
        DeepSeek-V3.2, arXiv 2512.02556, equation 1; huggingface/transformers 5.23, ``DeepseekV32Indexer``.
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
        assert mixer.q_lora_rank is not None
        spec = mixer.indexer
        self.heads, self.scale = spec.heads, (spec.heads * spec.head_dim) ** -0.5
        self.turn, self.interleaved = indexer_turn(mixer, spec), spec.interleaved
        self.rotate, self.tp_group = kernels["rope"], pg_collection.tp
        self.linear_wq_b = ReplicatedLinear(config, mixer.q_lora_rank, spec.heads * spec.head_dim)
        self.linear_wk = ReplicatedLinear(config, config.hidden_size, spec.head_dim)
        self.k_norm = LayerNorm(config, spec.head_dim, NORM_EPS, layer_norm=kernels["layer_norm"])
        self.linear_weights_proj = ReplicatedLinear(config, config.hidden_size, spec.heads)

    def forward(
        self, hidden: torch.Tensor, query_latent: torch.Tensor, sequences: Sequences
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (s, b, n, d) and weights of heads (s, b, n) of this rank's tokens, keys (t, b, 1, d) of all.

        Args:
            hidden: The layer's normed input, (s, b, hidden).
            query_latent: Of the attention's queries, (s, b, rank).
            sequences: The turns of their positions.
        """
        query = self.linear_wq_b(query_latent).unflatten(-1, (self.heads, -1))
        key = self.k_norm(self.linear_wk(hidden)).unsqueeze(2)
        query, key = (self._turned(x, sequences) for x in (query, key))
        if self.config.sequence_parallel:
            key = gather_from_sequence_parallel_region(key, group=self.tp_group)
        return query, key, self.linear_weights_proj(hidden) * self.scale

    def _turned(self, x: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        table, own = sequences.tables[self.turn], slice(None)
        if self.config.sequence_parallel:
            begin = self.tp_group.rank() * len(x)
            own = slice(begin, begin + len(x))
        return self.rotate(x, table.cos_sb1d[own], table.sin_sb1d[own], interleaved=self.interleaved)


def chosen_of(
    choose: Kernel,
    query_bsnd: torch.Tensor,
    key_btd: torch.Tensor,
    weights_bsn: torch.Tensor,
    *,
    begin: int,
    topk: int,
    cu_seqlens: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which positions of its own document each query sees, counted from the document's first, and their scores.

    Args:
        choose: The op ``lightning_indexer``, which gives both as (b, s, k).
        query_bsnd: Of the positions from ``begin`` on, with the weights of their heads.
        key_btd: Of all positions.
        weights_bsn: Of the queries' heads.
        begin: Where the queries begin.
        topk: How many positions a query sees.
        cu_seqlens: Where documents end, as `Sequences` has it.
    """
    b, s = query_bsnd.shape[:2]
    end = begin + s
    if cu_seqlens is None:
        indices, scores = choose(query_bsnd, key_btd[:, :end], weights_bsn, topk=topk)
        return indices, scores
    t, parts = key_btd.shape[1], []
    lengths = document_lengths(cu_seqlens.tolist(), size=t, samples=b)
    for first, after in pairwise(accumulate(lengths, initial=0)):
        sample, start = divmod(first, t)
        low, high = max(start, begin), min(start + after - first, end)
        if low < high:
            one, own = slice(sample, sample + 1), slice(low - begin, high - begin)
            parts.append(choose(query_bsnd[one, own], key_btd[one, start:high], weights_bsn[one, own], topk=topk))
    indices, scores = (torch.cat(part, dim=1)[0].unflatten(0, (b, s)) for part in zip(*parts, strict=True))
    return indices, scores
