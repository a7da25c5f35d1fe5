"""Low-rank adapters: ``y = W x + alpha/rank * B A x`` beside Megatron-core's linears, whose own weights are frozen.

Of a linear that splits its outputs over tp, A is whole on every rank and B is split; of one that splits its inputs, A
is split and B is whole. Between the two, ranks exchange what has ``rank`` features. Under sp a whole half sees its
rank's tokens only, and its gradient is summed over tp as a norm's is.

Legend: ``s`` = sequence, ``b`` = microbatch, ``n`` = outputs of a linear, ``r`` = rank of an adapter.

Source:
    arXiv 2106.09685, section 4.1; huggingface/peft 0.21, tuners/lora/tp_layer.py.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch.nn import functional

from ridgeline.core.job import Lora
from ridgeline.core.params import target_of

Linear: TypeAlias = ColumnParallelLinear | RowParallelLinear


class Half(torch.nn.Module):
    """One of an adapter's two matrices, read by a call, so that hooks wait for its gather."""

    def __init__(self, like: torch.Tensor, outputs: int, inputs: int, *, sequence_parallel: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(outputs, inputs, dtype=like.dtype, device=like.device))
        self.weight.sequence_parallel = sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]  Megatron's mark

    def forward(self) -> torch.Tensor:
        return self.weight


class Pairs(NamedTuple):
    """The adapters of linears that are multiplied together, one of each linear."""

    a: tuple[Half, ...]
    b: tuple[Half, ...]
    scale: float


def add_adapters(chunk: GPTModel, adapter: Lora) -> None:
    """Freeze a chunk, and hang an adapter on each of its target linears."""
    chunk.requires_grad_(False)
    for name, module in list(chunk.named_modules()):
        if isinstance(module, Linear) and target_of(name.rpartition(".")[2]) in adapter.targets:
            _add_adapter(module, adapter)
    if hasattr(chunk, "embedding"):
        chunk.embedding.register_forward_hook(_begin_graph)


def adapters_of(linears: Sequence[Any]) -> Pairs | None:
    """The adapters of experts' linears, if they have any."""
    if not hasattr(linears[0], "lora_A"):
        return None
    a, b = (tuple(getattr(linear, name) for linear in linears) for name in ("lora_A", "lora_B"))
    return Pairs(a, b, linears[0].lora_scale)


def _add_adapter(linear: Linear, adapter: Lora) -> None:
    assert linear.weight is not None
    outputs, inputs = linear.weight.shape
    is_column, in_experts = isinstance(linear, ColumnParallelLinear), linear.is_expert
    split_tokens = linear.sequence_parallel and not in_experts
    linear.lora_A = Half(linear.weight, adapter.rank, inputs, sequence_parallel=split_tokens and is_column)
    linear.lora_B = Half(linear.weight, outputs, adapter.rank, sequence_parallel=split_tokens and not is_column)
    linear.lora_scale = adapter.alpha / adapter.rank  # pyright: ignore[reportArgumentType]  no tensor, so no parameter
    linear.register_forward_hook(_with_adapter)


def _with_adapter(linear: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> Any:
    """What a linear gives, its output and the bias that is still to add, with its adapter's share of the output."""
    if not inputs:  # an expert's, of which all are multiplied together
        return output
    output_sbn, bias = output
    low_sbr = _exchanged(linear, functional.linear(inputs[0], linear.lora_A()))
    return output_sbn + linear.lora_scale * functional.linear(low_sbr, linear.lora_B()), bias


def _exchanged(linear: Linear, low_sbr: torch.Tensor) -> torch.Tensor:
    """What A gives on this rank, as B needs it."""
    group: Any = linear.tp_group
    if linear.is_expert or group.size() == 1:
        return low_sbr
    if isinstance(linear, ColumnParallelLinear):
        if linear.sequence_parallel:
            return gather_from_sequence_parallel_region(low_sbr, group=group)
        return copy_to_tensor_model_parallel_region(low_sbr, group=group)
    if linear.sequence_parallel:
        return reduce_scatter_to_sequence_parallel_region(low_sbr, group=group)
    return reduce_from_tensor_model_parallel_region(low_sbr, group=group)


def _begin_graph(module: Any, inputs: Any, output_sbh: torch.Tensor) -> torch.Tensor:
    """Let gradients reach the first adapters through what is recomputed: it has none where no input of it has."""
    return output_sbh.requires_grad_() if torch.is_grad_enabled() else output_sbh
