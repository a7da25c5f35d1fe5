"""Mamba2: a state for each channel that decays and gathers as the sequence goes on, and a gate on what it gives.

Legend: ``s`` = sequence, ``b`` = microbatch, ``h`` = hidden, ``n`` = heads of this rank, ``p`` = a head's size, ``v`` =
both, ``c`` = channels of the convolution.
"""

from functools import partial
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch.nn import functional

from ridgeline.core.model import Mamba2
from ridgeline.models.runtime.kernels import Kernels
from ridgeline.models.runtime.linears import column_parallel, row_parallel
from ridgeline.models.runtime.recurrent import Convolution
from ridgeline.models.runtime.sequences import Sequences, each_document


class MambaLayer(MegatronModule):
    """``x += scale * mixer(norm(x))``, with the names of Megatron-core's layer (``ssm/mamba_layer.py``)."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        mixer: Mamba2,
        norm: ModuleSpec,
        scale: float,
        kernels: Kernels,
        layer_number: int,
        pg_collection: ProcessGroupCollection | None = None,
        vp_stage: int | None = None,
        **unused: Any,
    ) -> None:
        super().__init__(config)
        self.layer_number = layer_number + get_transformer_layer_offset(config, vp_stage)
        self.scale = scale
        self.norm = build_module(norm, config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp"])
        self.mixer = MambaMixer(config, mixer=mixer, kernels=kernels, layer_number=self.layer_number, groups=groups)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: None = None, *, packed_seq_params: Sequences, **unused: Any
    ) -> tuple[torch.Tensor, None]:
        """The stream after the layer, (s or s/tp, b, h), and no context."""
        return hidden_states + self.scale * self.mixer(self.norm(hidden_states), packed_seq_params), None


class MambaMixer(MegatronModule):
    """A `Mamba2`, its groups and their heads split over tp. Parameters carry Megatron-core's names.

    Source:
        arXiv 2405.21060; megatron-core 0.16.1, ssm/mamba_mixer.py; huggingface/transformers 5.23, ``Mamba2Mixer``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        mixer: Mamba2,
        kernels: Kernels,
        layer_number: int,
        groups: ProcessGroupCollection,
    ) -> None:
        super().__init__(config)
        tp, dtype = groups.tp.size(), config.params_dtype
        self.mixer, self.scan, self.layer_number = mixer, kernels["mamba2_scan"], layer_number
        self.groups = mixer.groups // tp
        heads, width, states = mixer.heads // tp, mixer.width // tp, self.groups * mixer.state
        self.convolved = (width, states, states)
        self.parts = (width, sum(self.convolved), heads)
        self.in_proj = column_parallel(config, config.hidden_size, sum(self.parts) * tp, groups.tp, bias=mixer.bias)
        self.conv1d = Convolution(
            sum(self.convolved),
            mixer.conv_kernel,
            dtype=dtype,
            causal_conv1d=kernels["causal_conv1d"],
            bias=mixer.conv_bias,
        )
        self.dt_bias, self.A_log, self.D = (torch.nn.Parameter(torch.empty(heads, dtype=dtype)) for _ in range(3))
        self.norm = GroupedNorm(width, self.groups, eps=config.layernorm_epsilon, dtype=dtype)
        self.out_proj = row_parallel(config, mixer.width, config.hidden_size, groups.tp, bias=mixer.bias)

    def forward(self, normed_sbh: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        """What the layer adds to the stream, (s or s/tp, b, h)."""
        projected, _ = self.in_proj(normed_sbh)
        gate_bsv, inputs_bsc, dt_bsn = projected.transpose(0, 1).split(self.parts, dim=-1)
        step_bsn = functional.softplus(dt_bsn.float() + self.dt_bias.float()).clamp(min=self.mixer.step_min)
        mix = partial(self._mix, sequences=sequences)
        context_bsv = each_document(mix, inputs_bsc, step_bsn, cu_seqlens=sequences.cu_seqlens)
        gated = self.norm(context_bsv.float() * functional.silu(gate_bsv.float())).to(normed_sbh.dtype)
        output, bias = self.out_proj(gated.transpose(0, 1).contiguous())
        return output if bias is None else output + bias

    def _mix(self, inputs_bsc: torch.Tensor, step_bsn: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        """Convolution and scan over one document a sample, (b, s, n*p)."""
        cache = sequences.cache
        earlier, state = (None, None) if cache is None else cache.state(self.layer_number)
        convolved, last = self.conv1d(inputs_bsc, earlier)
        x, b, c = convolved.split(self.convolved, dim=-1)
        context_bsnp, memory = self.scan(
            x.unflatten(-1, (-1, self.mixer.head_dim)),
            step_bsn,
            -self.A_log.float().exp(),
            *(part.unflatten(-1, (self.groups, -1)) for part in (b, c)),
            skip_n=self.D.float(),
            state_bnpd=state,
        )
        if cache is not None:
            cache.remember(self.layer_number, last, memory)
        return context_bsnp.flatten(2)


class GroupedNorm(torch.nn.Module):
    """An RMSNorm over each group of channels apart, with a weight for each channel of this rank."""

    def __init__(self, width: int, groups: int, *, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(width, dtype=dtype))
        self.groups, self.eps = groups, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        by_group = x.unflatten(-1, (self.groups, -1))
        return (by_group * torch.rsqrt(by_group.square().mean(-1, keepdim=True) + self.eps)).flatten(-2) * self.weight
