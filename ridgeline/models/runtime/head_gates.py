"""Gates of heads: a number from 0 to 1 for each head and token, made from the layer's input.

Legend: as in `ridgeline.models.runtime.attention`, ``h`` = hidden.
"""

import torch
from megatron.core.tensor_parallel.mappings import all_to_all_sp2hp, scatter_to_tensor_model_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig

from ridgeline.models.runtime.linears import ReplicatedLinear


class HeadGates(ReplicatedLinear):
    """The gates of this rank's heads.

    Their matrix is small, and every tp rank holds it whole. Under sp each makes all gates of its own tokens, and ranks
    exchange them: they are a head's width fewer than the inputs, which a column-parallel matrix would gather again.
    """

    def __init__(self, config: TransformerConfig, *, heads: int, group: torch.distributed.ProcessGroup) -> None:
        super().__init__(config, config.hidden_size, heads)
        self.exchanges = config.sequence_parallel
        self.group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (s or s/tp, b, h) to (s, b, n)."""
        gates = super().forward(x)
        if self.exchanges:
            gates = all_to_all_sp2hp(gates, group=self.group).unflatten(0, (-1, x.shape[1]))
        else:
            gates = scatter_to_tensor_model_parallel_region(gates, group=self.group)
        return gates.sigmoid()
