"""Gated delta net: linear attention whose memory forgets, and writes only what it does not hold yet.

Legend: ``s`` = sequence, ``b`` = microbatch, ``n`` = value heads of this rank, ``v`` = size of a value head, ``c`` =
channels of the convolution.
"""

from functools import partial
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional

from ridgeline.core.model import GatedDeltaNet
from ridgeline.models.runtime.kernels import Kernels
from ridgeline.models.runtime.linears import column_parallel, row_parallel
from ridgeline.models.runtime.norms import RmsNorm
from ridgeline.models.runtime.recurrent import Convolution
from ridgeline.models.runtime.sequences import Sequences, each_document

NORM_EPS = 1e-6  # added to the squared length of queries and keys


class DeltaNet(MegatronModule):
    """A `GatedDeltaNet`, its heads split over tp. Parameters carry Megatron-core's names (``ssm/gated_delta_net.py``).

    Source:
        arXiv 2412.06464; huggingface/transformers 5.23, ``Qwen3NextGatedDeltaNet``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        mixer: GatedDeltaNet,
        layer_number: int,
        kernels: Kernels,
        pg_collection: ProcessGroupCollection,
        **unused: Any,
    ) -> None:
        super().__init__(config)
        tp, dtype = pg_collection.tp.size(), config.params_dtype
        self.mixer, self.kernels, self.layer_number = mixer, kernels, layer_number
        keys, values, heads = mixer.key_width, mixer.value_width, mixer.value_heads
        self.convolved = (keys // tp, keys // tp, values // tp)
        self.parts = (sum(self.convolved), values // tp, heads // tp, heads // tp)
        self.in_proj = column_parallel(config, config.hidden_size, 2 * (keys + values + heads), pg_collection.tp)
        self.conv1d = Convolution(self.parts[0], mixer.conv_kernel, dtype=dtype, causal_conv1d=kernels["causal_conv1d"])
        self.dt_bias = torch.nn.Parameter(torch.empty(heads // tp, dtype=dtype))
        self.A_log = torch.nn.Parameter(torch.empty(heads // tp, dtype=dtype))
        self.out_norm = RmsNorm(config, mixer.value_head_dim, config.layernorm_epsilon, rms_norm=kernels["rms_norm"])
        # Megatron's mark for a sum over tp: each rank's gradient is that of its own heads.
        self.out_norm.weight.sequence_parallel = True  # pyright: ignore[reportAttributeAccessIssue]
        self.out_proj = row_parallel(config, values, config.hidden_size, pg_collection.tp)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: None = None, *, packed_seq_params: Sequences, **unused: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the layer adds to the stream, (s or s/tp, b, hidden), and no bias."""
        projected, _ = self.in_proj(hidden_states)
        inputs_bsc, gate, beta, alpha = projected.transpose(0, 1).split(self.parts, dim=-1)
        log_decay_bsn = -self.A_log.float().exp() * functional.softplus(alpha.float() + self.dt_bias)
        mix = partial(self._mix, sequences=packed_seq_params)
        context_bsnv = each_document(
            mix, inputs_bsc, log_decay_bsn, beta.sigmoid(), cu_seqlens=packed_seq_params.cu_seqlens
        )
        gate_bsnv = gate.unflatten(-1, (-1, self.mixer.value_head_dim)).float()
        gated = self.out_norm(context_bsnv).float() * functional.silu(gate_bsnv)
        return self.out_proj(gated.to(hidden_states.dtype).flatten(2).transpose(0, 1).contiguous())

    def _mix(
        self, inputs_bsc: torch.Tensor, log_decay_bsn: torch.Tensor, beta_bsn: torch.Tensor, sequences: Sequences
    ) -> torch.Tensor:
        """Convolution and delta rule over one document a sample, (b, s, n, v)."""
        mixer = self.mixer
        earlier, state = (None, None) if sequences.cache is None else sequences.cache.state(self.layer_number)
        convolved, last = self.conv1d(inputs_bsc, earlier)
        query, key, value = convolved.split(self.convolved, dim=-1)
        repeats = mixer.value_heads // mixer.key_heads
        query, key = (
            _unit(x.unflatten(-1, (-1, mixer.key_head_dim))).repeat_interleave(repeats, dim=2) for x in (query, key)
        )
        context, memory = self.kernels["gated_delta_rule"](
            query,
            key,
            value.unflatten(-1, (-1, mixer.value_head_dim)),
            log_decay_bsn=log_decay_bsn,
            beta_bsn=beta_bsn,
            scale=mixer.key_head_dim**-0.5,
            state_bnkv=state,
        )
        if sequences.cache is not None:
            sequences.cache.remember(self.layer_number, last, memory)
        return context


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Each vector at length one."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPS)
