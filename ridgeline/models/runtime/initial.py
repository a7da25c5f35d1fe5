"""Initial weights that depend on the seed and the parameter's name alone: every layout starts from the same model.

A matrix is drawn in blocks of whole lines (its rows, or its columns if those are what tp splits), each block from a
generator of its own; a rank draws the blocks that its shard meets. One block of fp32 numbers is alive at a time.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import TypeAlias

import attrs
import torch

from ridgeline.core.model import ModelSpec, Norm
from ridgeline.core.params import Param, Role
from ridgeline.parallel.shards import Box

BLOCK_ELEMENTS = 1 << 22
INITIAL = MappingProxyType({"dt_bias": 1.0, "A_log": math.log(8.0), "D": 1.0})
Draw: TypeAlias = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
SPLIT_BY_COLUMNS: tuple[Role, ...] = ("out", "down")


def initial_std(model: ModelSpec, role: Role) -> float:
    """Standard deviation of a matrix's initial values; what adds to the residual stream is narrower in deep models.

    Source:
        megatron-core 0.16.1, transformer/transformer_config.py, ``output_layer_init_method``.
    """
    return model.init_std / math.sqrt(2 * model.num_layers) if role in ("out", "down") else model.init_std


@torch.no_grad()
def fill(
    tensor: torch.Tensor, param: Param, fqn: str, boxes: Sequence[Box], *, norm: Norm, seed: int, std: float
) -> None:
    """Write a rank's part of a parameter's initial value: norms scale by 1, biases are 0, matrices normal.

    Of an adapter, B is 0 and A as peft has it.

    Args:
        tensor: The part, any dtype, any device.
        param: What it is a part of.
        fqn: The name of the whole, which names the draw.
        boxes: Where the part lies in the whole, box after box along dim 0; rows beyond the whole are padding, 0.
        norm: Of the model's layers.
        seed: Of the run.
        std: Of a matrix.
    """
    if len(param.shape) == 1:
        tensor.fill_(_constant(param, norm))
        return
    if param.role == "conv":  # (channels, 1, width): each channel a line
        tensor, param, boxes = (
            tensor.squeeze(1),
            attrs.evolve(param, shape=param.shape[::2]),
            [box[::2] for box in boxes],
        )
    dim = 1 if param.role in SPLIT_BY_COLUMNS else 0
    tensor.zero_()
    if param.low_rank == "b":
        return
    begin = 0
    for box in boxes:
        rows = tensor[begin : begin + box[0][1] - box[0][0]]
        begin += len(rows)
        lines = _lines(fqn, param.shape[dim], param.shape[1 - dim], box[dim], seed=seed, draw=_draw_of(param, std))
        for line, values in lines:
            part = values[:, slice(*box[1 - dim])]
            rows.narrow(dim, line - box[dim][0], len(part)).copy_(part.t() if dim else part)


def _constant(param: Param, norm: Norm) -> float:
    """The value of a vector's elements.

    Source:
        huggingface/transformers 5.23, ``Qwen3NextGatedDeltaNet``: time steps begin at softplus(1). Decays begin at the
        mean of its random ones, exp(log(8)), so that a layout does not change them.
    """
    last = param.name.rpartition(".")[2]
    if last in INITIAL:
        return INITIAL[last]
    centred = norm == "zero_centred_rms" and not param.name.endswith(("out_norm.weight", "mixer.norm.weight"))
    scales = param.role in ("norm", "head_norm") or param.name.endswith("norm.weight")
    return 1.0 if scales and not centred else 0.0


def _draw_of(param: Param, std: float) -> Draw:
    """How a matrix's elements are drawn.

    Source:
        huggingface/peft 0.21, tuners/lora/layer.py, ``reset_lora_parameters``: ``kaiming_uniform_(a=sqrt(5))`` is
        uniform within one over the root of the inputs.
    """
    if param.low_rank == "a":
        bound = 1 / math.sqrt(param.shape[1])
        return lambda tensor, generator: tensor.uniform_(-bound, bound, generator=generator)
    return lambda tensor, generator: tensor.normal_(generator=generator).mul_(std)


def _lines(
    fqn: str, count: int, length: int, wanted: tuple[int, int], *, seed: int, draw: Draw
) -> Iterator[tuple[int, torch.Tensor]]:
    """The lines of the whole from ``wanted[0]`` to ``wanted[1]``, piece by piece, each with the index of its first."""
    size = max(1, BLOCK_ELEMENTS // length)
    for begin in range(wanted[0] // size * size, min(wanted[1], count), size):
        end = min(begin + size, count)
        generator = torch.Generator(device="cpu").manual_seed(_key(seed, fqn, begin))
        values = draw(torch.empty(end - begin, length, device="cpu"), generator)
        line = max(begin, wanted[0])
        yield line, values[line - begin : min(end, wanted[1]) - begin]


def _key(seed: int, fqn: str, line: int) -> int:
    """A number for one block, by a hash that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{fqn}/{line}".encode()).digest()[:8], "little") >> 1
