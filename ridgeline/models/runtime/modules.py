"""The modules Megatron-core builds its layers from, each calling the kernel that the plan chose for its op.

Legend: ``s`` = sequence, ``b`` = microbatch, ``n`` = query heads, ``g`` = key-value heads, ``d`` = head_dim; each the
part that this rank holds.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs
import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from ridgeline.core.model import Rope
from ridgeline.models.runtime.rope import RotaryTable

Kernel = Callable[..., torch.Tensor]


class KvCache(Protocol):
    """Keys and values of the tokens before those of this forward, for generation."""

    def extend(self, layer: int, key_sbgd: torch.Tensor, value_sbgd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a layer's keys and values (layers count from 1), and give all so far."""
        ...


@attrs.frozen(kw_only=True, eq=False)
class Sequences:
    """What the attention of every layer reads of a microbatch besides its hidden states.

    Attributes:
        tables: The rotary table of each kind of positions in the model.
        cu_seqlens: Where documents begin and the last one ends, counted over b*s tokens, sample after sample: int32, on
            the host; None when each sample is one document.
        cache: Earlier keys and values; None when training.
    """

    tables: Mapping[Rope, RotaryTable]
    cu_seqlens: torch.Tensor | None = None
    cache: KvCache | None = None


class RmsNorm(torch.nn.Module):
    """``x / rms(x) * weight`` over the last dim."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, *, rms_norm: Kernel) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]  Megatron's mark
        self.eps = eps
        self.rms_norm = rms_norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rms_norm(x, self.weight, eps=self.eps)


class SwiGlu(MegatronModule):
    """``silu(gate) * up`` of a fused projection that holds gate, then up, in its last dim."""

    def __init__(self, config: TransformerConfig, *, swiglu: Kernel) -> None:
        super().__init__(config)
        self.swiglu = swiglu

    def forward(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self.swiglu(gate_up)


class CoreAttention(MegatronModule):
    """Softmax attention between the projections: causal, within a window and within documents."""

    def __init__(self, config: TransformerConfig, *, window: int | None, attention: Kernel, **unused: Any) -> None:
        super().__init__(config)
        assert config.kv_channels is not None
        self.window = window
        self.attention = attention
        self.scale = config.kv_channels**-0.5

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

    def __init__(self, *args: Any, rope: Rope, rotate: Kernel, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rope = rope
        self.rotate = rotate

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  fewer cases than upstream's 17 arguments
        self, hidden_states: torch.Tensor, attention_mask: None = None, *, packed_seq_params: Sequences, **unused: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        table = packed_seq_params.tables[self.rope]
        query, key, value = self.get_query_key_value_tensors(hidden_states)  # pyright: ignore[reportAssignmentType]  no gate
        query = self.rotate(query, table.cos_sb1d, table.sin_sb1d)
        key = self.rotate(key, table.cos_sb1d, table.sin_sb1d)
        if packed_seq_params.cache is not None:
            key, value = packed_seq_params.cache.extend(self.layer_number, key, value)
        if self.checkpoint_core_attention and self.training:
            context = tensor_parallel.checkpoint(
                self.core_attention, False, query, key, value, packed_seq_params.cu_seqlens
            )
        else:
            context = self.core_attention(  # pyright: ignore[reportCallIssue]  upstream's protocol has no __call__
                query, key, value, packed_seq_params.cu_seqlens
            )
        return self.linear_proj(context)


class BiasedColumnParallelLinear(ColumnParallelLinear):
    """A column-parallel projection with a bias, whatever Megatron-core's one switch for all biases says."""

    def __init__(self, *args: Any, bias: bool, **kwargs: Any) -> None:
        super().__init__(*args, bias=True, **kwargs)


class BiasedRowParallelLinear(RowParallelLinear):
    """A row-parallel projection with a bias, whatever Megatron-core's one switch for all biases says."""

    def __init__(self, *args: Any, bias: bool, **kwargs: Any) -> None:
        super().__init__(*args, bias=True, **kwargs)
