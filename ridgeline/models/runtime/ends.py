"""What a model does to embedded tokens and to logits beyond looking them up and projecting."""

from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.spec_utils import build_module

from ridgeline.core.model import ModelSpec
from ridgeline.models.runtime.kernels import Kernels
from ridgeline.models.runtime.norms import norm_spec


def finish_ends(chunk: GPTModel, model: ModelSpec, kernels: Kernels) -> None:
    """Hang a model's scales, norms and cap on the modules that Megatron-core built for its ends, where it has any."""
    if chunk.pre_process and model.embedding_norm:
        chunk.embedding.norm = _norm(chunk, model, kernels)
    if model.mtp:  # upstream has it after the last layer, which may lie on an earlier stage
        later = model.mtp_before_norm
        chunk.decoder.final_layernorm = _norm(chunk, model, kernels, later=later) if chunk.post_process else None
    if hasattr(chunk, "embedding") and (model.embedding_norm or model.embedding_scale != 1.0):
        chunk.embedding.register_forward_hook(partial(_embedded, scale=model.embedding_scale))
    if chunk.post_process and model.head_bias:
        chunk.output_layer.bias = _head_bias(chunk.output_layer)
    if chunk.post_process and model.normalized_head:
        chunk.output_layer.register_forward_pre_hook(_normalize_rows, with_kwargs=True)
    if chunk.post_process and (model.logit_scale != 1.0 or model.logit_softcap is not None):
        hook = partial(_logits, scale=model.logit_scale, softcap=model.logit_softcap)
        chunk.output_layer.register_forward_hook(hook)


def _norm(chunk: GPTModel, model: ModelSpec, kernels: Kernels, *, later: bool = False) -> torch.nn.Module:
    config, spec = chunk.config, norm_spec(model.norm, kernels, later=later)
    norm = build_module(spec, config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)
    assert isinstance(norm, torch.nn.Module)
    return norm


def _head_bias(head: ColumnParallelLinear) -> torch.nn.Parameter:
    """A bias for each token of this rank's part of the vocabulary; upstream has heads without."""
    return torch.nn.Parameter(torch.empty(head.output_size_per_partition, dtype=head.config.params_dtype))


def _embedded(module: Any, inputs: Any, output_sbh: torch.Tensor, *, scale: float) -> torch.Tensor:
    # The scale is rounded to the dtype of activations, as transformers rounds it.
    scaled = output_sbh * torch.tensor(scale, dtype=output_sbh.dtype) if scale != 1.0 else output_sbh
    return module.norm(scaled) if hasattr(module, "norm") else scaled


def _normalize_rows(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """Use each row of the head at length 1: a row is of one token, whole on its tp rank."""
    weight = module.weight if kwargs.get("weight") is None else kwargs["weight"]
    return args, {**kwargs, "weight": torch.nn.functional.normalize(weight)}


def _logits(
    module: Any, inputs: Any, output: tuple[torch.Tensor, Any], *, scale: float, softcap: float | None
) -> tuple[torch.Tensor, Any]:
    logits_sbv, bias = output
    logits_sbv = logits_sbv * scale if scale != 1.0 else logits_sbv
    if softcap is not None:
        logits_sbv = softcap * torch.tanh(logits_sbv / softcap)
    return logits_sbv, bias
