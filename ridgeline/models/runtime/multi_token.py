"""Multi-token prediction: layers after the last one that guess the tokens after the next.

Layer k takes what the one before it says of a position and the embedding of the token k places on, and predicts the
token after that; embedding and head are the model's. A position whose document ends before has no loss. What one layer
says to the next is what its norm gives the head or, in models whose layers read before norms, what that norm is given.

Legend: ``s`` = sequence, ``b`` = microbatch, ``h`` = hidden.

Source:
    DeepSeek-V3, arXiv 2412.19437, section 2.2, its parts in the order of the published weights: the embedding's half of
    the projection first, the final norm before the first layer. Names are Megatron-core's
    (megatron-core 0.16.1, transformer/multi_token_prediction.py), whose own layer wants labels even to give logits, a
    mask of its own kind for attention, and its own kind of packed sequences.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import (
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.random import checkpoint
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionBlockSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from ridgeline.core.model import ModelSpec
from ridgeline.kernels.documents import document_lengths
from ridgeline.models.runtime.kernels import Kernels
from ridgeline.models.runtime.layers import layer_spec
from ridgeline.models.runtime.linears import column_parallel
from ridgeline.models.runtime.norms import norm_spec
from ridgeline.models.runtime.sequences import Sequences


class PredictionLayer(MegatronModule):
    """One depth: two norms, a projection of both together, a block, and a norm."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        model: ModelSpec,
        kernels: Kernels,
        layer_number: int,
        vp_stage: int | None,
        **unused: Any,
    ) -> None:
        super().__init__(config)
        norm = partial(
            build_module, norm_spec(model.norm, kernels), config=config, hidden_size=model.hidden, eps=model.norm_eps
        )
        self.enorm, self.hnorm = norm(), norm()
        tp = parallel_state.get_tensor_model_parallel_group()
        assert isinstance(tp, torch.distributed.ProcessGroup)
        self.eh_proj = column_parallel(config, 2 * model.hidden, model.hidden, tp)
        self.transformer_layer = build_module(
            layer_spec(model.block_ahead, model, kernels),
            config=config,
            # Layers count on after the model's; a layer adds its stage's offset itself.
            layer_number=model.num_layers + layer_number - get_transformer_layer_offset(config, vp_stage),
            vp_stage=vp_stage,
        )
        self.final_layernorm = norm()
        self.before_norm = model.mtp_before_norm

    def forward(
        self, hidden_sbh: torch.Tensor, embedded_sbh: torch.Tensor, sequences: Sequences
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the head reads, and what the next depth does, (s or s/tp, b, h) each."""

        def run(hidden_sbh: torch.Tensor, embedded_sbh: torch.Tensor) -> tuple[torch.Tensor, ...]:
            joined, _ = self.eh_proj(torch.cat((self.enorm(embedded_sbh), self.hnorm(hidden_sbh)), dim=-1))
            joined = gather_from_tensor_model_parallel_region(joined)
            if self.config.sequence_parallel:
                joined = scatter_to_sequence_parallel_region(joined)
            output, _ = self.transformer_layer(joined, attention_mask=None, packed_seq_params=sequences)
            return (self.final_layernorm(output), output) if self.before_norm else (self.final_layernorm(output),)

        config = self.config
        if self.training and config.recompute_granularity == "full" and config.recompute_method == "uniform":
            outputs = checkpoint(run, False, hidden_sbh, embedded_sbh)
        else:
            outputs = run(hidden_sbh, embedded_sbh)
        return outputs[0], outputs[-1]


def prediction_spec(model: ModelSpec, kernels: Kernels) -> MultiTokenPredictionBlockSubmodules | None:
    """The layers of a model that predicts further tokens."""
    layer = ModuleSpec(module=PredictionLayer, params={"model": model, "kernels": kernels})
    return MultiTokenPredictionBlockSubmodules(layer_specs=[layer] * model.mtp) if model.mtp else None


def hidden_ahead(
    chunk: GPTModel, hidden_sbh: torch.Tensor, tokens_bs: torch.Tensor, left_bs: torch.Tensor, sequences: Sequences
) -> Iterator[torch.Tensor]:
    """What the head reads at each depth, (s or s/tp, b, h), from what the first depth reads of the model."""
    for depth, layer in enumerate(chunk.mtp.layers, start=1):
        embedded_sbh = chunk.embedding(input_ids=ahead(tokens_bs, depth, left_bs), position_ids=None)
        read_sbh, hidden_sbh = layer(hidden_sbh, embedded_sbh, sequences)
        yield read_sbh


def tokens_left(sequences: Sequences, *, samples: int, size: int, device: torch.device) -> torch.Tensor:
    """How many tokens of its document follow each position, (b, s)."""
    if sequences.cu_seqlens is None:
        return torch.arange(size - 1, -1, -1, device=device).expand(samples, size)
    lengths = document_lengths(sequences.cu_seqlens.tolist(), size=size, samples=samples)
    left = torch.cat([torch.arange(length - 1, -1, -1) for length in lengths])
    return left.reshape(samples, size).to(device, non_blocking=True)


def ahead(x_bs: torch.Tensor, depth: int, left_bs: torch.Tensor) -> torch.Tensor:
    """What stands ``depth`` places on in the same document, 0 where that has ended."""
    return torch.where(left_bs >= depth, x_bs.roll(-depth, dims=1), 0)
