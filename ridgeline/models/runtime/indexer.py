"""DeepSeek's lightning indexer: cheap heads whose scores say which positions attention sees.

Legend: ``s`` = sequence, ``b`` = microbatch, ``n`` = heads of the indexer, ``d`` = their head_dim, ``k`` = chosen
positions.
"""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from ridgeline.core.model import LatentAttention
from ridgeline.models.runtime.kernels import Kernels
from ridgeline.models.runtime.linears import ReplicatedLinear
from ridgeline.models.runtime.norms import LayerNorm
from ridgeline.models.runtime.sequences import Sequences, indexer_turn

NORM_EPS = 1e-6
"""Of its keys, whatever a config gives the other norms."""


class Indexer(MegatronModule):
    """The projections of an `Indexer`, whole on every tp rank; under sp each projects its own tokens.

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
        """Queries (s, b, n, d), keys (s, b, 1, d) and weights of heads (s, b, n) of all tokens, alike on every tp rank.

        Args:
            hidden: The layer's normed input, (s or s/tp, b, hidden).
            query_latent: Of the attention's queries, (s or s/tp, b, rank).
            sequences: The turns of their positions.
        """
        query, key = self.linear_wq_b(query_latent), self.k_norm(self.linear_wk(hidden))
        weights = self.linear_weights_proj(hidden) * self.scale
        if self.config.sequence_parallel:
            query, key, weights = (self._gathered(x) for x in (query, key, weights))
        table = sequences.tables[self.turn]
        query, key = (
            self.rotate(x, table.cos_sb1d, table.sin_sb1d, interleaved=self.interleaved)
            for x in (query.unflatten(-1, (self.heads, -1)), key.unsqueeze(2))
        )
        return query, key, weights

    def _gathered(self, x: torch.Tensor) -> torch.Tensor:
        """Of all tokens; every tp rank reads them alike, so that each keeps the gradient of its own."""
        return gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=False, group=self.tp_group)
